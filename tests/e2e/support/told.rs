//! A process in the workspace whose output the laptop keeps, whatever happens between the two.

use std::path::PathBuf;

use super::program::take_surroundings;
use super::transfers::{RECOVERY, digest};
use super::wait::within;
use super::{Running, World, command};

/// A program in the workspace, run from the laptop, that says so many bytes twenty times a second and keeps a copy.
#[derive(Debug)]
pub struct Told {
    sent: PathBuf,
    enough: PathBuf,
    arrives: PathBuf,
    hears: Running,
}

impl Told {
    #[track_caller]
    pub fn start(world: &World, bytes: usize) -> Told {
        let (laptop, workspace) = (&world.linked.laptop, world.linked.machine.workspace.path());
        let arrives = laptop.home().join("arrives");
        let tells = format!("while [ ! -e enough ]; do head -c {bytes} /dev/urandom; sleep 0.05; done | tee sent");
        let hears = laptop.command(&["exec", "box", "--", "sh", "-c", &tells]);
        let mut shell = command("sh", ["-c", &format!("exec \"$0\" \"$@\" > {}", arrives.display())]);
        shell.arg(hears.get_program()).args(hears.get_args());
        take_surroundings(&mut shell, &hears);
        let hears = Running::start(world.laptops_place().run(shell));
        let told = Told { sent: workspace.join("sent"), enough: workspace.join("enough"), arrives, hears };
        told.more(0);
        told
    }

    /// Waits until more than so many bytes have arrived.
    #[track_caller]
    pub fn more(&self, than: u64) {
        let more = within(RECOVERY, || (self.arrived() > than).then_some(()));
        more.unwrap_or_else(|| panic!("{} bytes arrived: {}", self.arrived(), self.hears.output()));
    }

    /// Bytes at the laptop.
    pub fn arrived(&self) -> u64 {
        std::fs::metadata(&self.arrives).map_or(0, |file| file.len())
    }

    /// All of it arrived, and as it was sent.
    #[track_caller]
    pub fn ends_well(mut self) {
        assert!(self.hears.has_ended().is_none(), "what the workspace says broke: {}", self.hears.output());
        std::fs::write(&self.enough, "").expect("a file of ours");
        self.hears.completes(RECOVERY);
        println!("{} bytes came all the while", std::fs::metadata(&self.arrives).map_or(0, |file| file.len()));
        assert_eq!(digest(&self.arrives), digest(&self.sent), "what arrived is not what was sent");
    }
}
