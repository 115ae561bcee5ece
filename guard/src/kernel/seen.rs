//! What netlink says is attached to interfaces, by whomever.

use std::{collections::HashMap, io};

use futures::TryStreamExt;
use netlink_packet_route::{
    link::{LinkAttribute, LinkXdp, XdpAttached},
    tc::{TcAttribute, TcFilterBpfOption, TcMessage, TcOption},
};

use super::{
    KernelError,
    sys::{self, TcxProgram},
};

/// What is attached to one interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    pub xdp: Option<SeenXdp>,
    /// The programs at TCX ingress, in the order in which packets meet them.
    pub tcx: Vec<TcxProgram>,
    /// And those at TCX egress.
    pub tcx_egress: Vec<TcxProgram>,
    /// `bpf` filters of `clsact`.
    pub filters: Vec<SeenFilter>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeenXdp {
    pub is_native: bool,
    pub program_id: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeenFilter {
    pub is_egress: bool,
    pub priority: u16,
    pub handle: u32,
    pub program_id: u32,
}

/// Asks for these interfaces, in the network namespace of the calling thread.
///
/// # Errors
/// When netlink does not answer. An interface that has gone meanwhile has nothing attached.
pub async fn seen(interfaces: &[u32]) -> Result<HashMap<u32, Seen>, KernelError> {
    let failed = |source| KernelError::System { what: "asking netlink what is attached", source };
    let (connection, handle, _) = rtnetlink::new_connection().map_err(failed)?;
    let connection = tokio::spawn(connection);
    let mut all = HashMap::new();

    let mut links = handle.link().get().execute();
    while let Some(link) =
        links.try_next().await.map_err(|error| failed(io::Error::other(error.to_string())))?
    {
        if interfaces.contains(&link.header.index) {
            let xdp = link.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::Xdp(parts) => seen_xdp(parts),
                _ => None,
            });
            all.insert(link.header.index, Seen { xdp, ..Seen::default() });
        }
    }
    for (ifindex, seen) in &mut all {
        for is_egress in [false, true] {
            let request = handle.traffic_filter(ifindex.cast_signed()).get();
            let request = if is_egress { request.egress() } else { request.ingress() };
            let mut filters = request.execute();
            // An interface without clsact answers with an error, which says the same as an empty list.
            while let Ok(Some(message)) = filters.try_next().await {
                seen.filters.extend(seen_filter(&message, is_egress));
            }
        }
    }
    connection.abort();
    for ifindex in interfaces {
        // Kernels without TCX, and interfaces that have gone, have nothing there.
        let [tcx, tcx_egress] = [false, true]
            .map(|is_egress| sys::tcx_programs(*ifindex, is_egress).unwrap_or_default());
        if !(tcx.is_empty() && tcx_egress.is_empty()) {
            let seen = all.entry(*ifindex).or_default();
            (seen.tcx, seen.tcx_egress) = (tcx, tcx_egress);
        }
    }
    Ok(all)
}

fn seen_xdp(parts: &[LinkXdp]) -> Option<SeenXdp> {
    let native = parts.iter().find_map(|part| match part {
        LinkXdp::DrvProgId(id) => Some(SeenXdp { is_native: true, program_id: *id }),
        _ => None,
    });
    let generic = parts.iter().find_map(|part| match part {
        LinkXdp::SkbProgId(id) => Some(SeenXdp { is_native: false, program_id: *id }),
        _ => None,
    });
    // Kernels before 4.19 name the program only once.
    let is_native = parts.contains(&LinkXdp::Attached(XdpAttached::Driver));
    let any = parts.iter().find_map(|part| match part {
        LinkXdp::ProgId(id) if *id != 0 => Some(SeenXdp { is_native, program_id: *id }),
        _ => None,
    });
    native.or(generic).or(any)
}

fn seen_filter(message: &TcMessage, is_egress: bool) -> Option<SeenFilter> {
    let program_id = message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Options(options) => options.iter().find_map(|option| match option {
            TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => Some(*id),
            _ => None,
        }),
        _ => None,
    })?;
    // The priority is the upper half of `tcm_info` (`TC_H_MAJ` in `include/uapi/linux/pkt_sched.h`).
    let priority = (message.header.info >> 16) as u16;
    Some(SeenFilter { is_egress, priority, handle: u32::from(message.header.handle), program_id })
}
