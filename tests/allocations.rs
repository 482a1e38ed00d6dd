//! In the steady state a step of training allocates nothing (every allocation of this test's process is counted).

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use striate::config::{Objective, RunConfig};
use striate::kernels::Rows;
use striate::network::Network;
use striate::training::optimiser::Step;

/// The system's allocator, counting.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const CONFIG: &str = "[input]\nheight = 24\nwidth = 24\npreprocess = \"none\"\n\
    [[stages]]\nmaps = 5\nfield = 7\npool = 2\nlcn = 3\n\
    [[stages]]\nmaps = 9\nfield = 5\nstride = 2\npool = 2\nlcn = 3\n\
    [training]\nsteps = [1, 1]\nbatch = 20\n";

#[test]
fn a_step_of_training_allocates_nothing() {
    let recipes: [&[&str]; 3] = [
        &["training.optimiser=\"sgd\""],
        &["training.optimiser=\"adagrad\"", "training.decoder_norm_bound=1.0", "training.encoder_decay=1e-3"],
        &["training.optimiser=\"adagrad\"", "training.decoder_norm_bound=1.0", "training.precision=\"bf16\""],
    ];
    let threads = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    for recipe in recipes {
        let overrides: Vec<String> = recipe.iter().map(|&text| text.into()).collect();
        let config = RunConfig::parse(CONFIG, &overrides).unwrap();
        let network = Network::new(&config, 0).unwrap();
        for objective in Objective::ALL {
            for rows in [Rows::InTurn, Rows::Shared] {
                let mut work = network.workspace(config.training.batch).with_rows(rows);
                work.input.iter_mut().zip((0..97).cycle()).for_each(|(x, n)| *x = (n as f32).sin());
                let update = Step::new(network.cpu, &config.training, 1e-3, 0);
                let count = threads.install(|| {
                    let mut steps = |count| {
                        for _ in 0..count {
                            network.learn(&mut work, 0..2, objective, &update);
                        }
                    };
                    // Scratch memory of every thread, whichever gets the work.
                    steps(50);
                    let before = ALLOCATIONS.load(Ordering::Relaxed);
                    steps(50);
                    ALLOCATIONS.load(Ordering::Relaxed) - before
                });
                assert_eq!(count, 0, "{} {rows:?} {recipe:?}", objective.name());
            }
        }
    }
    assert!(ALLOCATIONS.load(Ordering::Relaxed) > 100, "allocations are counted");
}
