//! `--ca-file`: a company's own authority for its load balancer.

use std::io::Read;
use std::path::Path;

use super::failure::{self, Failure};
use crate::role::balancer;
use crate::transport::address::CoordinatorUrl;
use crate::transport::outer::OuterTls;

/// Bytes of the file: a bundle of all authorities that browsers trust has a quarter of it.
const MAX_FILE: u64 = 1024 * 1024;

/// Checks the file and keeps its content in `dir`. Without a file, what was kept before is forgotten.
pub fn keep(dir: &Path, url: &CoordinatorUrl, file: Option<&Path>) -> Result<(), Failure> {
    let Some(file) = file else { return Ok(balancer::keep(dir, None)?) };
    if !url.is_behind_balancer() {
        let text = "--ca-file is for a load balancer; a coordinator's own authority comes with the code. hint: write \
                    the address as https+balancer://HOST, or leave --ca-file out";
        return Err(Failure::new(failure::USAGE, text));
    }
    let mut pem = String::new();
    let read = std::fs::File::open(file).and_then(|open| open.take(MAX_FILE).read_to_string(&mut pem));
    read.map_err(|e| {
        Failure::new(failure::USAGE, format!("{}: {e}. hint: --ca-file takes a file in PEM", file.display()))
    })?;
    OuterTls::new(url, Some(&pem)).map_err(|e| Failure::new(failure::USAGE, format!("{}: {e}", file.display())))?;
    Ok(balancer::keep(dir, Some(&pem))?)
}
