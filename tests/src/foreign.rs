//! Programs of somebody else's at the hooks where guard's stand, and what the kernel says of guard's own links.

use std::{
    collections::BTreeSet,
    ffi::CString,
    fs,
    io::{self, BufRead, BufReader, Read as _},
    mem,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use aya::{
    maps::MapData,
    programs::loaded_programs,
    sys::{Stats, enable_stats},
};
use aya_obj::generated::{
    XDP_FLAGS_DRV_MODE, XDP_FLAGS_SKB_MODE, bpf_attach_type, bpf_attr, bpf_cmd, bpf_insn,
    bpf_link_info, bpf_prog_info, bpf_prog_type,
};

use crate::{command, lab::Lab, machine::Machine};

/// `BPF_F_BEFORE` and `BPF_F_AFTER` of `include/uapi/linux/bpf.h`: first and last at a TCX hook.
const BEFORE: u32 = 1 << 3;
const AFTER: u32 = 1 << 4;

/// `XDP_DROP`, `XDP_PASS`, and the two answers of a TCX program that let a packet pass: to the next program, or past the others.
const XDP_DROP: i32 = 1;
const XDP_PASS: i32 = 2;
pub const TCX_NEXT: i32 = -1;
pub const TCX_PASS: i32 = 0;

/// A name that no program of guard's has.
const NAME: &[u8] = b"foreign";

/// A program that gives every packet the same answer. It is detached when this is dropped.
#[derive(Debug)]
pub struct Foreign {
    program: OwnedFd,
    link: Option<OwnedFd>,
    /// The kernel counts how often programs run as long as somebody wants it to.
    _counting: Option<OwnedFd>,
}

/// Where a program of somebody else's stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    XdpNative,
    XdpGeneric,
    Tcx,
    /// At sockets, and loaded only: a test run needs no more.
    Cgroup,
}

impl Foreign {
    /// In the XDP slot of an interface, by a link. The kernel's error where it is taken.
    ///
    /// # Errors
    /// The kernel's own.
    #[track_caller]
    pub fn at_xdp(machine: &Machine, interface: &str) -> io::Result<Self> {
        let mut foreign = Self::load(bpf_prog_type::BPF_PROG_TYPE_XDP, XDP_PASS);
        foreign.attach(machine, interface, bpf_attach_type::BPF_XDP, XDP_FLAGS_DRV_MODE)?;
        Ok(foreign)
    }

    /// In the XDP slot of an interface, by `ip link set`, until that is told otherwise.
    #[must_use]
    #[track_caller]
    pub fn at_xdp_by_ip(lab: &Lab, machine: &Machine, interface: &str) -> Self {
        let foreign = Self::load(bpf_prog_type::BPF_PROG_TYPE_XDP, XDP_PASS);
        // Not below the lab's pins, which are guard's. The interface holds the program without it.
        let pin = PathBuf::from("/sys/fs/bpf").join(format!("{}-foreign", lab.name()));
        let pinned = pin_at(foreign.program.as_fd(), &pin);
        assert!(pinned.is_ok(), "{} can't be pinned: {pinned:?}", pin.display());
        let is_set = set_xdp(machine, interface, &["pinned", &pin.display().to_string()]);
        let removed = fs::remove_file(&pin);
        assert!(removed.is_ok(), "{} stays: {removed:?}", pin.display());
        assert!(is_set, "`ip` can't put a program on {interface}");
        foreign
    }

    /// First at TCX ingress of an interface, with this answer.
    #[must_use]
    #[track_caller]
    pub fn first_at_tcx(machine: &Machine, interface: &str, answer: i32) -> Self {
        Self::at_tcx(machine, interface, answer, BEFORE)
    }

    /// Last at TCX ingress of an interface, with this answer.
    #[must_use]
    #[track_caller]
    pub fn last_at_tcx(machine: &Machine, interface: &str, answer: i32) -> Self {
        Self::at_tcx(machine, interface, answer, AFTER)
    }

    #[track_caller]
    fn at_tcx(machine: &Machine, interface: &str, answer: i32, flags: u32) -> Self {
        let mut foreign = Self::load(bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS, answer);
        let attached = foreign.attach(machine, interface, bpf_attach_type::BPF_TCX_INGRESS, flags);
        assert!(attached.is_ok(), "TCX at {interface} can't be had: {attached:?}");
        foreign
    }

    /// Without a count of how often it runs, which takes time.
    ///
    /// # Errors
    /// The kernel's own.
    pub fn uncounted(
        machine: &Machine,
        interface: &str,
        place: Place,
        answer: i32,
    ) -> io::Result<Self> {
        let mut foreign = Self::unattached(place, answer)?;
        let (attach_type, flags) = match place {
            Place::XdpNative => (bpf_attach_type::BPF_XDP, XDP_FLAGS_DRV_MODE),
            Place::XdpGeneric => (bpf_attach_type::BPF_XDP, XDP_FLAGS_SKB_MODE),
            Place::Tcx => (bpf_attach_type::BPF_TCX_INGRESS, BEFORE),
            Place::Cgroup => return Err(io::ErrorKind::Unsupported.into()),
        };
        foreign.attach(machine, interface, attach_type, flags)?;
        Ok(foreign)
    }

    /// As [`Foreign::uncounted`], attached nowhere.
    ///
    /// # Errors
    /// The kernel's own.
    pub fn unattached(place: Place, answer: i32) -> io::Result<Self> {
        let kind = match place {
            Place::XdpNative | Place::XdpGeneric => bpf_prog_type::BPF_PROG_TYPE_XDP,
            Place::Tcx => bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS,
            Place::Cgroup => bpf_prog_type::BPF_PROG_TYPE_CGROUP_SKB,
        };
        Ok(Self { program: load(kind, answer)?, link: None, _counting: None })
    }

    /// At native XDP, uncounted: drops what has this port in the place where the destination port of TCP and UDP stands behind an
    /// IPv4 header without options, and passes all else.
    ///
    /// # Errors
    /// The kernel's own.
    pub fn dropping(machine: &Machine, interface: &str, port: u16) -> io::Result<Self> {
        let program = load_program(bpf_prog_type::BPF_PROG_TYPE_XDP, &drops_port(port))?;
        let mut foreign = Self { program, link: None, _counting: None };
        foreign.attach(machine, interface, bpf_attach_type::BPF_XDP, XDP_FLAGS_DRV_MODE)?;
        Ok(foreign)
    }

    #[must_use]
    pub fn program(&self) -> BorrowedFd<'_> {
        self.program.as_fd()
    }

    #[track_caller]
    fn load(kind: bpf_prog_type, answer: i32) -> Self {
        let counting = enable_stats(Stats::RunTime)
            .unwrap_or_else(|error| panic!("the kernel does not count runs: {error}"));
        let program = load(kind, answer)
            .unwrap_or_else(|error| panic!("two instructions can't be loaded: {error}"));
        Self { program, link: None, _counting: Some(counting) }
    }

    #[track_caller]
    fn attach(
        &mut self,
        machine: &Machine,
        interface: &str,
        attach_type: bpf_attach_type,
        flags: u32,
    ) -> io::Result<()> {
        let index = machine.index_of(interface);
        let mut attr = zeroed();
        attr.link_create.__bindgen_anon_1.prog_fd = raw(self.program.as_fd());
        attr.link_create.__bindgen_anon_2.target_ifindex = index;
        attr.link_create.attach_type = attach_type as u32;
        attr.link_create.flags = flags;
        self.link = Some(machine.inside(|| bpf_fd(bpf_cmd::BPF_LINK_CREATE, &mut attr))?);
        Ok(())
    }

    /// How often it has run.
    #[must_use]
    #[track_caller]
    pub fn runs(&self) -> u64 {
        let id = self.id();
        let info = loaded_programs().flatten().find(|info| info.id() == id);
        info.map_or(0, |info| info.run_count())
    }

    /// Its number, by which status names it.
    #[must_use]
    #[track_caller]
    pub fn id(&self) -> u32 {
        // SAFETY: a plain record of integers.
        let mut info: bpf_prog_info = unsafe { mem::zeroed() };
        let told = info_of(self.program.as_fd(), &mut info);
        assert!(told.is_ok(), "the kernel does not know its own program: {told:?}");
        info.id
    }
}

/// The filter of xdp-tools on an interface, behind what libxdp makes of the slot. It is taken off when this is dropped.
#[derive(Debug)]
pub struct XdpFilter {
    /// Lives as long as its standard input: its pins are in a /sys/fs/bpf of its own.
    session: Child,
}

impl XdpFilter {
    /// What may then stand in the slot: libxdp's dispatcher, or the filter itself where the kernel lets no program replace
    /// a function of another (`BPF_PROG_TYPE_EXT`).
    pub const IN_THE_SLOT: [&str; 2] = ["xdp_dispatcher", "xdpfilt_alw_all"];

    /// A filter that drops what is sent to this port, and passes everything else.
    ///
    /// # Errors
    /// What `xdp-filter` said.
    #[track_caller]
    pub fn on(machine: &Machine, interface: &str, port: u16) -> Result<Self, String> {
        let script = "mount -t bpf bpf /sys/fs/bpf\n\
            xdp-filter load --mode native --policy allow \"$1\"\n\
            xdp-filter port --proto tcp --mode dst \"$2\"\n\
            echo filters\n\
            read -r _ || xdp-filter unload \"$1\"\n";
        let mut session = Command::new("nsenter")
            .arg(format!("--net={}", machine.netns_path().display()))
            .args(["unshare", "--mount", "sh", "-ec", script, "sh", interface, &port.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("`nsenter` could not be started: {error}"));
        let said = session.stdout.take().map(BufReader::new).into_iter().flat_map(BufRead::lines);
        if said.map_while(Result::ok).any(|line| line == "filters") {
            return Ok(Self { session });
        }
        let mut why = String::new();
        // Without a reason it has failed all the same.
        let _ = session.stderr.take().map(|mut stderr| stderr.read_to_string(&mut why));
        let _ = session.wait();
        Err(why)
    }
}

impl Drop for XdpFilter {
    fn drop(&mut self) {
        drop(self.session.stdin.take());
        // What it left, if anything, goes with the lab's interface.
        let _ = self.session.wait();
    }
}

/// What the kernel takes for the maps below a directory, in bytes.
#[must_use]
#[track_caller]
pub fn pinned_map_bytes(pins: &Path) -> u64 {
    let maps = fs::read_dir(pins.join("v1/maps"))
        .unwrap_or_else(|error| panic!("there are no pins: {error}"));
    let of_one = |path: &Path| {
        let map = MapData::from_pin(path)
            .unwrap_or_else(|error| panic!("{} is no map: {error}", path.display()));
        let facts = format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd());
        let facts = fs::read_to_string(facts).unwrap_or_default();
        let bytes: Option<u64> =
            facts.lines().find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok());
        bytes.unwrap_or_else(|| panic!("its memory is not told:\n{facts}"))
    };
    maps.flatten().map(|entry| of_one(&entry.path())).sum::<u64>()
}

/// Guard's links that are pinned below this directory: the hook's name, and the id.
#[must_use]
pub fn guard_links(pins: &Path) -> BTreeSet<(String, u32)> {
    let links = pinned_links(pins).into_iter();
    links.filter_map(|(hook, link)| Some((hook, link_id(&link)?))).collect()
}

/// Takes guard's links of this hook (`tcx`, `xdp`, `cgroup`) off, as `bpftool link detach` does. Returns how many there were.
#[track_caller]
pub fn detach_guard(pins: &Path, hook: &str) -> usize {
    let links = pinned_links(pins).into_iter().filter(|(at, _)| at == hook);
    links.map(|(_, link)| detach(&link)).count()
}

/// Takes the oldest of guard's links of this hook off.
#[track_caller]
pub fn detach_oldest(pins: &Path, hook: &str) {
    let links = pinned_links(pins).into_iter().filter(|(at, _)| at == hook);
    let oldest = links.min_by_key(|(_, link)| link_id(link));
    let (_, oldest) = oldest.unwrap_or_else(|| panic!("guard has no link at {hook}"));
    detach(&oldest);
}

#[track_caller]
fn detach(link: &OwnedFd) {
    let mut attr = zeroed();
    attr.link_detach.link_fd = raw(link.as_fd());
    let detached = bpf(bpf_cmd::BPF_LINK_DETACH, &mut attr);
    assert!(detached.is_ok(), "a link can't be detached: {detached:?}");
}

/// The attached program of guard's links below this directory that has this name.
#[must_use]
pub fn guard_program(pins: &Path, name: &str) -> Option<OwnedFd> {
    pinned_links(pins).into_iter().find_map(|(_, link)| {
        // SAFETY: plain records of integers.
        let (mut link_info, mut info): (bpf_link_info, bpf_prog_info) = unsafe { mem::zeroed() };
        info_of(link.as_fd(), &mut link_info).ok()?;
        let mut attr = zeroed();
        attr.__bindgen_anon_6.__bindgen_anon_1.prog_id = link_info.prog_id;
        let program = bpf_fd(bpf_cmd::BPF_PROG_GET_FD_BY_ID, &mut attr).ok()?;
        info_of(program.as_fd(), &mut info).ok()?;
        let bytes = info.name.map(i8::cast_unsigned);
        let length = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        (bytes[..length] == *name.as_bytes()).then_some(program)
    })
}

fn link_id(link: &OwnedFd) -> Option<u32> {
    // SAFETY: a plain record of integers.
    let mut info: bpf_link_info = unsafe { mem::zeroed() };
    info_of(link.as_fd(), &mut info).ok().map(|()| info.id)
}

/// By the names of their pins, which begin with the hook's.
fn pinned_links(pins: &Path) -> Vec<(String, OwnedFd)> {
    let layouts = fs::read_dir(pins).into_iter().flatten().flatten();
    let links = layouts.flat_map(|layout| fs::read_dir(layout.path().join("links")));
    let open = |path: PathBuf| {
        let name = path.file_name()?.to_string_lossy().into_owned();
        let (hook, _) = name.split_once('-')?;
        let path = CString::new(path.as_os_str().as_encoded_bytes()).ok()?;
        let mut attr = zeroed();
        attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
        Some((hook.to_owned(), bpf_fd(bpf_cmd::BPF_OBJ_GET, &mut attr).ok()?))
    };
    links.flatten().flatten().map(|pin| pin.path()).filter_map(open).collect()
}

/// An instruction of `include/uapi/linux/bpf.h`.
fn instruction(code: u8, to: u8, from: u8, off: i16, imm: i32) -> bpf_insn {
    let registers = bpf_insn::new_bitfield_1(to, from);
    bpf_insn { code, _bitfield_align_1: [], _bitfield_1: registers, off, imm }
}

const MOVE: u8 = 0xb7;
const EXIT: u8 = 0x95;

/// `r0 = answer; exit`.
fn load(kind: bpf_prog_type, answer: i32) -> io::Result<OwnedFd> {
    load_program(kind, &[instruction(MOVE, 0, 0, 0, answer), instruction(EXIT, 0, 0, 0, 0)])
}

fn drops_port(port: u16) -> [bpf_insn; 10] {
    const LOAD_WORD: u8 = 0x61;
    const LOAD_HALF: u8 = 0x69;
    const MOVE_REGISTER: u8 = 0xbf;
    const ADD: u8 = 0x07;
    const JUMP_IF_GREATER: u8 = 0x2d;
    const JUMP_UNLESS_EQUAL: u8 = 0x55;
    const DATA: i16 = 0;
    const DATA_END: i16 = 4;
    // Behind 14 bytes of Ethernet, 20 of IPv4 and the source port.
    const PORT: i16 = 36;
    let port = i32::from(port.to_be());
    [
        instruction(LOAD_WORD, 2, 1, DATA, 0),
        instruction(LOAD_WORD, 3, 1, DATA_END, 0),
        instruction(MOVE, 0, 0, 0, XDP_PASS),
        instruction(MOVE_REGISTER, 4, 2, 0, 0),
        instruction(ADD, 4, 0, 0, i32::from(PORT) + 2),
        instruction(JUMP_IF_GREATER, 4, 3, 3, 0),
        instruction(LOAD_HALF, 5, 2, PORT, 0),
        instruction(JUMP_UNLESS_EQUAL, 5, 0, 1, port),
        instruction(MOVE, 0, 0, 0, XDP_DROP),
        instruction(EXIT, 0, 0, 0, 0),
    ]
}

fn load_program(kind: bpf_prog_type, program: &[bpf_insn]) -> io::Result<OwnedFd> {
    let mut attr = zeroed();
    // SAFETY: all members of the union are made of integers.
    let request = unsafe { &mut attr.__bindgen_anon_3 };
    request.prog_type = kind as u32;
    request.insn_cnt = program.len() as u32;
    request.insns = program.as_ptr() as u64;
    request.license = c"GPL".as_ptr() as u64;
    for (to, from) in request.prog_name.iter_mut().zip(NAME) {
        *to = from.cast_signed();
    }
    bpf_fd(bpf_cmd::BPF_PROG_LOAD, &mut attr)
}

fn pin_at(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_encoded_bytes())?;
    let mut attr = zeroed();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    attr.__bindgen_anon_4.bpf_fd = raw(object);
    bpf(bpf_cmd::BPF_OBJ_PIN, &mut attr).map(drop)
}

fn info_of<T>(object: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    let mut attr = zeroed();
    attr.info.bpf_fd = raw(object);
    attr.info.info = (&raw mut *info) as u64;
    attr.info.info_len = size_of::<T>() as u32;
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr).map(drop)
}

pub(crate) fn zeroed() -> bpf_attr {
    // SAFETY: the union is made of integers, for which all zeros is a value.
    unsafe { mem::zeroed() }
}

fn bpf_fd(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<OwnedFd> {
    let fd = bpf(command, attr)?;
    // SAFETY: the command succeeded, so the number is a descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(crate) fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i32> {
    // SAFETY: `attr` is a whole `bpf_attr`, whose pointers the caller has made from live references.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command as libc::c_long, &raw mut *attr, size_of::<bpf_attr>())
    };
    i32::try_from(result).ok().filter(|result| *result >= 0).ok_or_else(io::Error::last_os_error)
}

pub(crate) fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// Takes the XDP program off an interface, as `ip` does with those it has put there; says whether the kernel let it.
#[must_use]
#[track_caller]
pub fn xdp_off(machine: &Machine, interface: &str) -> bool {
    set_xdp(machine, interface, &["off"])
}

/// `ip -netns` would mount another /sys over the one that holds the pins.
#[track_caller]
fn set_xdp(machine: &Machine, interface: &str, program: &[&str]) -> bool {
    let mut ip = Command::new("nsenter");
    ip.arg(format!("--net={}", machine.netns_path().display()));
    ip.args(["ip", "link", "set", "dev", interface, "xdpdrv"]).args(program);
    command::output(&mut ip, "").status.success()
}
