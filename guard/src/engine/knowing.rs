//! Keeps what is known of sources up to date, for whoever tells of attempts.

use std::{path::PathBuf, sync::Arc};

use super::Engine;
use crate::{
    compile::Tables,
    control::Failure,
    enrich::{self, Enrichment, Network},
    host::netlink::{self, NetlinkError},
    kernel::{probe, tables::PolicyMaps},
};

impl Engine {
    #[must_use]
    pub fn enrichment(&self) -> Arc<Enrichment> {
        self.enrichment.clone()
    }

    /// Looks at this host's network, and at the neighbours that the policy lets in. Must not be called within a runtime.
    ///
    /// # Errors
    /// When netlink does not answer: what was known stays.
    pub fn learn_network(&self) -> Result<(), Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| unknown(&NetlinkError::Socket(error)))?;
        let (snapshot, neighbours) = runtime
            .block_on(async {
                // The second opens its socket in the same thread: this runtime has no other.
                Ok((netlink::snapshot().await?, netlink::neighbours().await?))
            })
            .map_err(|error| unknown(&error))?;
        let network = {
            let core = self.core();
            let tables = core.maps.as_ref().and_then(PolicyMaps::put_tables);
            let ports = tables.map(Tables::every_port).unwrap_or_default();
            let now_ns = probe::boot_ns();
            Network::new(&snapshot, &neighbours, |address| {
                let lets_in =
                    |port| tables.is_some_and(|tables| !tables.stops(address.into(), port, now_ns));
                ports.iter().copied().any(lets_in)
            })
        };
        self.enrichment.take_network(network);
        Ok(())
    }

    /// Takes what has changed in the files of facts about sources.
    pub fn learn_files(&self) -> enrich::Followed {
        let config = self.core().settings.config.enrich.clone();
        let followed = self.enrichment.follow_files(&config);
        super::give_memory_back();
        followed
    }

    /// The directories in which such files can appear.
    #[must_use]
    pub fn fact_directories(&self) -> Vec<PathBuf> {
        let config = self.core().settings.config.enrich.clone();
        Enrichment::directories(&config)
    }
}

fn unknown(error: &NetlinkError) -> Failure {
    Failure::failed(
        format!("what sources are on this host's network is not known: {error}"),
        error.fix(),
    )
}
