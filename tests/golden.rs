//! The network against an independent float64 implementation: every tensor, every mode, every instruction set.

use std::path::Path;

use striate::kernels::Cpu;
use striate::verify::{SHIPPED, check_file};

#[test]
fn all_golden_values_hold_on_every_cpu_level() {
    for cpu in Cpu::available() {
        for (name, bytes) in SHIPPED {
            let checks = check_file(Path::new(name), bytes, cpu).unwrap();
            assert!(checks.len() >= 28, "{name}: only {} tensors compared", checks.len());
            for check in checks {
                let (error, tolerance) = (check.error, check.tolerance);
                eprintln!("{} {name} {} {error:.1e}", cpu.name(), check.tensor);
                assert!(check.passes(), "{} {name} {}: {error:e} > {tolerance:e}", cpu.name(), check.tensor);
            }
        }
    }
}
