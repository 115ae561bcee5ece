//! The lab of the end-to-end tests: worlds of network namespaces in which the real `guard` binary meets real packets.
//!
//! A [`lab::Lab`] is one test's world, named after the test: a server with a listener, outsiders on veth pairs, at wish a
//! container behind a bridge. A [`product::Guard`] is the binary under test in it (`GUARD_BIN`), with pins, cgroup, state
//! and socket of its own, so that tests run side by side. Both remove everything of theirs on every exit, and look
//! for leftovers.
//!
//! What goes wrong in here fails the test: functions panic with a sentence where an ordinary library would return an
//! error, and name the line of the test that called them.

#![expect(
    clippy::missing_panics_doc,
    reason = "panicking is how a test fails, and every function here is called by tests only"
)]

pub mod bench;
pub mod bpf;
pub mod build;
pub mod cgroup;
pub mod command;
pub mod corpus;
pub mod dns;
pub mod engine;
pub mod foreign;
pub mod forwarder;
pub mod fuzz;
pub mod http;
pub mod interrupt;
pub mod kernel;
pub mod lab;
pub mod list;
pub mod listener;
pub mod lock;
pub mod machine;
pub mod mmdb;
pub mod outlet;
pub mod pppoe;
pub mod product;
pub mod rows;
pub mod tap;
pub mod tmux;
pub mod traffic;
pub mod wait;
pub mod wire;

/// Makes a test of the function of this name for each way to attach: `name::native`, `name::tcx`, ….
///
/// The function takes the [`product::Attach`]. Without a list it is every way there is. One that this kernel is too old for
/// is skipped, and says so.
#[macro_export]
macro_rules! on_each_hook {
    ($name:ident) => {
        $crate::on_each_hook!($name, [native, generic, tcx, clsact, socket]);
    };
    ($name:ident, [$($attach:ident),+]) => {
        mod $name {
            $(
                #[test]
                fn $attach() {
                    let attach = $crate::product::Attach::named(stringify!($attach));
                    match attach.missing() {
                        None => super::$name(attach),
                        Some(what) => $crate::kernel::skip(
                            concat!(stringify!($name), "::", stringify!($attach)),
                            what,
                        ),
                    }
                }
            )+
        }
    };
}
