//! The few commands of the `bpf` system call that aya keeps to itself: links as they are in the kernel, whoever made them.

use std::{
    ffi::CString,
    io, mem,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use aya_obj::generated::{
    bpf_attach_type, bpf_attr, bpf_cmd, bpf_link_info, bpf_link_type, bpf_map_type,
};

/// `BPF_F_BEFORE` of `include/uapi/linux/bpf.h`: stand before the programs that are there.
const BEFORE: u32 = 1 << 3;

fn zeroed() -> bpf_attr {
    // SAFETY: the union is made of integers, for which all zeros is a value; the kernel wants unused bytes to be zero.
    unsafe { mem::zeroed() }
}

fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<u32> {
    // SAFETY: `attr` is a whole `bpf_attr`, whose pointers the caller has made from live references.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command as libc::c_long, &raw mut *attr, size_of::<bpf_attr>())
    };
    u32::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn bpf_fd(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<OwnedFd> {
    let fd = bpf(command, attr)?.cast_signed();
    // SAFETY: the command succeeded, so the number is a descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from)
}

/// What a link ties a program to.
#[derive(Clone, Copy, Debug)]
pub enum Target<'a> {
    XdpNative(u32),
    XdpGeneric(u32),
    /// TCX ingress, before the programs that are there.
    Tcx(u32),
    /// TCX egress, before the programs that are there.
    TcxEgress(u32),
    /// Ingress of a cgroup v2 directory.
    Cgroup(BorrowedFd<'a>),
}

/// Attaches a program. Kernel 5.9 for XDP, 6.6 for TCX, 5.7 for a cgroup.
pub fn link_create(program: BorrowedFd<'_>, target: Target<'_>) -> io::Result<OwnedFd> {
    use bpf_attach_type::{BPF_CGROUP_INET_INGRESS, BPF_TCX_EGRESS, BPF_TCX_INGRESS, BPF_XDP};
    let (target, attach_type, flags) = match target {
        Target::XdpNative(index) => (index, BPF_XDP, aya_obj::generated::XDP_FLAGS_DRV_MODE),
        Target::XdpGeneric(index) => (index, BPF_XDP, aya_obj::generated::XDP_FLAGS_SKB_MODE),
        Target::Tcx(index) => (index, BPF_TCX_INGRESS, BEFORE),
        Target::TcxEgress(index) => (index, BPF_TCX_EGRESS, BEFORE),
        // The kernel runs links of a cgroup beside others' programs by itself, and takes no flag for it.
        Target::Cgroup(directory) => (raw(directory), BPF_CGROUP_INET_INGRESS, 0),
    };
    let mut attr = zeroed();
    attr.link_create.__bindgen_anon_1.prog_fd = raw(program);
    attr.link_create.__bindgen_anon_2.target_fd = target;
    attr.link_create.attach_type = attach_type as u32;
    attr.link_create.flags = flags;
    bpf_fd(bpf_cmd::BPF_LINK_CREATE, &mut attr)
}

/// Puts another program in a link's place, without a packet in between that none has judged. Kernel 5.7.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = zeroed();
    attr.link_update.link_fd = raw(link);
    attr.link_update.__bindgen_anon_1.new_prog_fd = raw(program);
    bpf(bpf_cmd::BPF_LINK_UPDATE, &mut attr).map(|_| ())
}

/// Takes a link from its hook, also while others hold or pin it. Kernel 5.9.
pub fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = zeroed();
    attr.link_detach.link_fd = raw(link);
    bpf(bpf_cmd::BPF_LINK_DETACH, &mut attr).map(|_| ())
}

/// The smallest link id above `id`, or `None` behind the last. Kernel 5.8.
pub fn link_next_id(id: u32) -> io::Result<Option<u32>> {
    let mut attr = zeroed();
    attr.__bindgen_anon_6.__bindgen_anon_1.start_id = id;
    match bpf(bpf_cmd::BPF_LINK_GET_NEXT_ID, &mut attr) {
        // SAFETY: the kernel has written this member.
        Ok(_) => Ok(Some(unsafe { attr.__bindgen_anon_6.next_id })),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Kernel 5.8.
pub fn link_by_id(id: u32) -> io::Result<OwnedFd> {
    let mut attr = zeroed();
    attr.__bindgen_anon_6.__bindgen_anon_1.link_id = id;
    bpf_fd(bpf_cmd::BPF_LINK_GET_FD_BY_ID, &mut attr)
}

/// What a link is tied to, as the kernel says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkPlace {
    /// 0 when the interface is gone.
    Xdp {
        ifindex: u32,
    },
    /// TCX ingress. 0 when the interface is gone.
    Tcx {
        ifindex: u32,
    },
    /// 0 when the interface is gone.
    TcxEgress {
        ifindex: u32,
    },
    /// 0 when the cgroup is gone.
    Cgroup {
        cgroup_id: u64,
    },
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkInfo {
    pub id: u32,
    pub program_id: u32,
    pub place: LinkPlace,
}

/// Kernel 5.8.
pub fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    // SAFETY: a plain record of integers.
    let mut info: bpf_link_info = unsafe { mem::zeroed() };
    let mut attr = zeroed();
    attr.info.bpf_fd = raw(link);
    attr.info.info = (&raw mut info) as u64;
    attr.info.info_len = size_of::<bpf_link_info>() as u32;
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;

    // SAFETY: each member is one that the kernel writes for this type of link; all are integers.
    let place = unsafe {
        if info.type_ == bpf_link_type::BPF_LINK_TYPE_XDP as u32 {
            LinkPlace::Xdp { ifindex: info.__bindgen_anon_1.xdp.ifindex }
        } else if info.type_ == bpf_link_type::BPF_LINK_TYPE_TCX as u32 {
            let tcx = info.__bindgen_anon_1.tcx;
            if tcx.attach_type == bpf_attach_type::BPF_TCX_EGRESS as u32 {
                LinkPlace::TcxEgress { ifindex: tcx.ifindex }
            } else {
                LinkPlace::Tcx { ifindex: tcx.ifindex }
            }
        } else if info.type_ == bpf_link_type::BPF_LINK_TYPE_CGROUP as u32 {
            LinkPlace::Cgroup { cgroup_id: info.__bindgen_anon_1.cgroup.cgroup_id }
        } else {
            LinkPlace::Other
        }
    };
    Ok(LinkInfo { id: info.id, program_id: info.prog_id, place })
}

/// A program at a TCX hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcxProgram {
    pub program_id: u32,
    /// 0 where it was attached without a link.
    pub link_id: u32,
}

/// `BPF_MPROG_MAX` of `include/linux/bpf_mprog.h`: no TCX hook holds more programs.
const TCX_ROOM: usize = 64;

/// The programs at an interface's TCX ingress or egress, in the order in which packets meet them. Kernel 6.6.
pub fn tcx_programs(ifindex: u32, is_egress: bool) -> io::Result<Vec<TcxProgram>> {
    use bpf_attach_type::{BPF_TCX_EGRESS, BPF_TCX_INGRESS};
    let attach_type = if is_egress { BPF_TCX_EGRESS } else { BPF_TCX_INGRESS };
    let mut programs = [0_u32; TCX_ROOM];
    let mut links = [0_u32; TCX_ROOM];
    let mut attr = zeroed();
    attr.query.__bindgen_anon_1.target_ifindex = ifindex;
    attr.query.attach_type = attach_type as u32;
    attr.query.__bindgen_anon_2.count = TCX_ROOM as u32;
    attr.query.prog_ids = programs.as_mut_ptr() as u64;
    attr.query.link_ids = links.as_mut_ptr() as u64;
    bpf(bpf_cmd::BPF_PROG_QUERY, &mut attr)?;
    // SAFETY: the kernel has written this member.
    let count = unsafe { attr.query.__bindgen_anon_2.count } as usize;
    let entries = programs.into_iter().zip(links).take(count);
    Ok(entries.map(|(program_id, link_id)| TcxProgram { program_id, link_id }).collect())
}

/// Keeps an object alive under a name in a bpffs.
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = zeroed();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    attr.__bindgen_anon_4.bpf_fd = raw(object);
    bpf(bpf_cmd::BPF_OBJ_PIN, &mut attr).map(|_| ())
}

/// Opens a pinned object.
pub fn pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = zeroed();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    bpf_fd(bpf_cmd::BPF_OBJ_GET, &mut attr)
}

/// Makes an array with keys of 32 bits. `pages` begins its values at a page (`BPF_F_MMAPABLE`, kernel 5.5).
pub fn array_create(value_bytes: u32, entries: u32, pages: bool) -> io::Result<OwnedFd> {
    let flags = if pages { aya_obj::generated::BPF_F_MMAPABLE } else { 0 };
    map_create(bpf_map_type::BPF_MAP_TYPE_ARRAY, value_bytes, entries, flags, 0)
}

fn map_create(
    map_type: bpf_map_type,
    value_bytes: u32,
    entries: u32,
    flags: u32,
    inner: u32,
) -> io::Result<OwnedFd> {
    let mut attr = zeroed();
    attr.__bindgen_anon_1.map_type = map_type as u32;
    attr.__bindgen_anon_1.key_size = 4;
    attr.__bindgen_anon_1.value_size = value_bytes;
    attr.__bindgen_anon_1.max_entries = entries;
    attr.__bindgen_anon_1.map_flags = flags;
    attr.__bindgen_anon_1.inner_map_fd = inner;
    bpf_fd(bpf_cmd::BPF_MAP_CREATE, &mut attr)
}

/// Puts maps into an array of maps, from this place on. The kernel waits for programs under way after each call, so it is
/// one call where the kernel knows how (`generic_map_update_batch` of `array_of_maps_map_ops` in `kernel/bpf/arraymap.c`).
pub fn maps_put(outer: BorrowedFd<'_>, first: u32, maps: &[OwnedFd]) -> io::Result<()> {
    if maps.is_empty() {
        return Ok(());
    }
    let numbers: Vec<u32> = maps.iter().map(|map| raw(map.as_fd())).collect();
    let keys: Vec<u32> = (first..).take(maps.len()).collect();
    let mut attr = zeroed();
    attr.batch.keys = keys.as_ptr() as u64;
    attr.batch.values = numbers.as_ptr() as u64;
    attr.batch.count = maps.len() as u32;
    attr.batch.map_fd = raw(outer);
    if bpf(bpf_cmd::BPF_MAP_UPDATE_BATCH, &mut attr).is_ok() {
        return Ok(());
    }
    keys.iter().zip(&numbers).try_for_each(|(key, number)| map_put(outer, key, number))
}

fn map_put(map: BorrowedFd<'_>, key: &u32, value: &u32) -> io::Result<()> {
    let mut attr = zeroed();
    attr.__bindgen_anon_2.map_fd = raw(map);
    attr.__bindgen_anon_2.key = (&raw const *key) as u64;
    attr.__bindgen_anon_2.__bindgen_anon_1.value = (&raw const *value) as u64;
    bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr).map(|_| ())
}

/// The 32 bits of an entry: of a map in an array of maps its id. `None` where there is none.
pub fn map_get(map: BorrowedFd<'_>, key: u32) -> io::Result<Option<u32>> {
    let mut value = 0_u32;
    let mut attr = zeroed();
    attr.__bindgen_anon_2.map_fd = raw(map);
    attr.__bindgen_anon_2.key = (&raw const key) as u64;
    attr.__bindgen_anon_2.__bindgen_anon_1.value = (&raw mut value) as u64;
    match bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr) {
        Ok(_) => Ok(Some(value)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// An entry of an array, of which so many bytes are known to be its size.
pub fn array_value(map: BorrowedFd<'_>, key: u32, value_bytes: u32) -> io::Result<Vec<u8>> {
    let mut value = vec![0; value_bytes as usize];
    let mut attr = zeroed();
    attr.__bindgen_anon_2.map_fd = raw(map);
    attr.__bindgen_anon_2.key = (&raw const key) as u64;
    attr.__bindgen_anon_2.__bindgen_anon_1.value = value.as_mut_ptr() as u64;
    bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr)?;
    Ok(value)
}

/// So many entries of an array of 64 bits, from this one on: one call where the kernel knows how (5.6), else one for each.
pub fn array_words(map: BorrowedFd<'_>, first: u32, count: u32) -> io::Result<Vec<u64>> {
    let mut keys = vec![0_u32; count as usize];
    let mut words = vec![0_u64; count as usize];
    // A batch begins behind a key, or with the first.
    let before = first.checked_sub(1);
    let read = lookup_batch(map, before, &mut keys, &mut words);
    let is_whole =
        |batch: &Batch| batch.count == count && keys.iter().copied().eq(first..first + count);
    if read.is_ok_and(|batch| is_whole(&batch)) {
        return Ok(words);
    }
    let word = |key| {
        let bytes = array_value(map, key, size_of::<u64>() as u32)?;
        bytes.try_into().map(u64::from_ne_bytes).map_err(|_| io::ErrorKind::UnexpectedEof.into())
    };
    (first..first + count).map(word).collect()
}

/// Entries of a hash map that are read at once.
const PART: u32 = 2_048;

/// Hands on every value of a hash map that holds nothing but these keys and values, and has at most so many buckets. Others may
/// write to it meanwhile: what comes or goes is seen or not. Kernel 5.6.
pub fn hash_values<K: aya::Pod, V: aya::Pod>(
    map: BorrowedFd<'_>,
    buckets: u32,
    mut take: impl FnMut(&V),
) -> io::Result<()> {
    // SAFETY: `Pod` says that every pattern of bits is a value.
    let (key, value) = unsafe { (mem::zeroed::<K>(), mem::zeroed::<V>()) };
    let (mut keys, mut values) = (vec![key; PART as usize], vec![value; PART as usize]);
    // The next bucket, which the kernel hands back and takes again (`__htab_map_lookup_and_delete_batch` in
    // `kernel/bpf/hashtab.c`). It comes nearer to the end with each call.
    let mut next = None;
    for _ in 0..buckets {
        let batch = lookup_batch(map, next, &mut keys, &mut values)?;
        values.iter().take(batch.count as usize).for_each(&mut take);
        if batch.is_last {
            break;
        }
        next = Some(batch.next);
    }
    Ok(())
}

/// What one reading of many entries came to.
struct Batch {
    count: u32,
    /// Where the next one begins.
    next: u32,
    /// There is none.
    is_last: bool,
}

/// Reads as many entries as there is room for, from `after` on. Kernel 5.6.
fn lookup_batch<K: aya::Pod, V: aya::Pod>(
    map: BorrowedFd<'_>,
    after: Option<u32>,
    keys: &mut [K],
    values: &mut [V],
) -> io::Result<Batch> {
    let mut next = 0_u32;
    let mut attr = zeroed();
    attr.batch.in_batch = after.as_ref().map_or(0, |after| (&raw const *after) as u64);
    attr.batch.out_batch = (&raw mut next) as u64;
    attr.batch.keys = keys.as_mut_ptr() as u64;
    attr.batch.values = values.as_mut_ptr() as u64;
    attr.batch.count = keys.len().min(values.len()) as u32;
    attr.batch.map_fd = raw(map);
    let is_last = match bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr) {
        Ok(_) => false,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
        Err(error) => return Err(error),
    };
    // SAFETY: the kernel has written this member, or left it.
    let count = unsafe { attr.batch.count };
    Ok(Batch { count, next, is_last })
}

pub fn map_delete(map: BorrowedFd<'_>, key: u32) -> io::Result<()> {
    let mut attr = zeroed();
    attr.__bindgen_anon_2.map_fd = raw(map);
    attr.__bindgen_anon_2.key = (&raw const key) as u64;
    bpf(bpf_cmd::BPF_MAP_DELETE_ELEM, &mut attr).map(|_| ())
}

/// Returns when every program run that was under way has ended.
///
/// An update of a map of maps from userspace waits for that (`maybe_wait_bpf_programs` in `kernel/bpf/syscall.c`, kernel
/// 4.20); `membarrier` would too, but is refused on kernels with `nohz_full` CPUs.
pub fn wait_for_running_programs() -> io::Result<()> {
    let inner = array_create(4, 1, false)?;
    let number = raw(inner.as_fd());
    let outer = map_create(bpf_map_type::BPF_MAP_TYPE_ARRAY_OF_MAPS, 4, 1, 0, number)?;
    map_put(outer.as_fd(), &0, &number)
}
