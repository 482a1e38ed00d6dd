//! `striate serve`: look at a run in the browser, and drop pictures on it.

use std::net::{IpAddr, SocketAddr};

use striate::analysis::look::Viewer;
use striate::serve::Server;

use super::Global;
use super::view::ViewArgs;

/// Show a run in the browser: all that the report has, and which units fire for a picture that is dropped, and why.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  striate serve outputs/run
  striate serve outputs/run --port 9000 --frames other-frames/
  striate serve outputs/run --host 0.0.0.0        # whoever can reach this machine may look, too

Pictures that are dropped are looked at on this machine and not kept. It listens on this machine alone unless --host says otherwise;
there are no passwords. Ctrl-C ends it.")]
pub struct ServeArgs {
    #[command(flatten)]
    view: ViewArgs,
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1")]
    host: IpAddr,
    /// Port to listen on; 0 for any that is free.
    #[arg(long, default_value_t = 8417)]
    port: u16,
}

pub fn run(args: ServeArgs, global: Global) -> anyhow::Result<()> {
    let view = args.view.load(&global)?;
    let (bar, progress) = global.parts("serve");
    let viewer = Viewer::new(view.checkpoint, view.dataset, view.group, &progress)?;
    bar.finish_and_clear();
    let server = Server::new(&args.view.run, viewer, view.identity)?;
    if !args.host.is_loopback() && !global.quiet {
        say!("note: whoever can reach {} may look at this run, without a password", args.host);
    }
    let mut printed = Ok(());
    server.serve(SocketAddr::new(args.host, args.port), |address| {
        printed = global.print(&Address { address: format!("http://{address}/") });
    })?;
    printed
}

/// Where it is.
#[derive(serde::Serialize)]
struct Address {
    address: String,
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{}  (Ctrl-C ends it)", self.address)
    }
}
