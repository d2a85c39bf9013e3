//! Shell completions and man pages, from the same description that parses the arguments.

use std::path::PathBuf;

use clap::{CommandFactory, Subcommand};
use clap_complete::Shell;

use super::failure::Failure;

/// What can be generated.
#[derive(Debug, Subcommand)]
pub enum Generate {
    /// Shell completions on standard output: `source <(nexus-proxy generate completions bash)`.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Man pages, one a command, into a directory.
    Man {
        /// The directory; made if it is not there.
        directory: PathBuf,
    },
}

/// Generates for the program that `A` describes.
pub fn run<A: CommandFactory>(what: &Generate) -> Result<u8, Failure> {
    let mut command = A::command();
    match what {
        Generate::Completions { shell } => {
            let name = command.get_name().to_owned();
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut command, name, &mut script);
            // A reader that has seen enough is no error.
            let _ = std::io::Write::write_all(&mut std::io::stdout(), &script);
        }
        Generate::Man { directory } => {
            std::fs::create_dir_all(directory)?;
            clap_mangen::generate_to(command, directory)?;
        }
    }
    Ok(0)
}
