//! In the steady state a step of training allocates nothing, nor does preparing its minibatch (every allocation of this test's
//! process is counted).

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use striate::config::{Objective, RunConfig};
use striate::dataset::{Augment, Dataset};
use striate::kernels::Rows;
use striate::network::Network;
use striate::network::preprocess::{Inputs, Scratch, Whitening};
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

/// One test, since another at the same time would be counted with it.
#[test]
fn the_steady_state_allocates_nothing() {
    a_step_of_training_allocates_nothing();
    a_minibatch_allocates_nothing();
}

/// Allocations while `work`, which is many times the same, is done: the fewest of several repetitions after a first. On a busy
/// machine a thread may come late to a piece of work, and then takes the scratch memory that it keeps.
fn fewest(mut work: impl FnMut()) -> usize {
    let mut count = || {
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        work();
        ALLOCATIONS.load(Ordering::Relaxed) - before
    };
    count();
    (0..5).map(|_| count()).find(|&count| count == 0).unwrap_or_else(count)
}

/// ZCA is left out: a product of matrices takes memory to pack them.
fn a_minibatch_allocates_nothing() {
    let threads = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    for (preprocess, margin) in ["none", "contrast", "lcn", "conv"].into_iter().flat_map(|p| [(p, 0), (p, 3)])
    {
        let overrides = [format!("input.preprocess={preprocess}"), format!("input.margin={margin}")];
        let mut config = RunConfig::parse(CONFIG, &overrides).unwrap();
        config.input.flip = margin > 0;
        let (shape, batch) = (config.input_shape(), config.training.batch);
        let pixels = (0..50 * shape.with_margin(margin).len()).map(|n| (n * n / 7 % 251) as u8).collect();
        let dataset = Dataset::from_pixels_with_margin(shape, margin, pixels);
        let whitening = Whitening::fit(&config.input, &dataset, 0).unwrap();
        let inputs = Inputs::for_training(&dataset, &whitening, 0, Augment::new(&config.input, 0));
        let (mut input, mut scratch) = (vec![0.0; shape.len() * 32], Scratch::default());
        let indices: Vec<usize> = (0..batch).map(|n| 7 * n % 50).collect();
        let count = threads.install(|| {
            fewest(|| {
                (0..50).for_each(|n| {
                    inputs.fill_minibatch(Some(n), &indices, 32, &mut input, &mut scratch).unwrap();
                })
            })
        });
        assert_eq!(count, 0, "{preprocess}, margin {margin}");
    }
}

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
                    fewest(|| {
                        for _ in 0..50 {
                            network.learn(&mut work, 0..2, objective, &update);
                        }
                    })
                });
                assert_eq!(count, 0, "{} {rows:?} {recipe:?}", objective.name());
            }
        }
    }
    assert!(ALLOCATIONS.load(Ordering::Relaxed) > 100, "allocations are counted");
}
