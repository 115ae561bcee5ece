//! Who changed what, as it is kept and shown.

use std::{
    env, fs,
    os::unix::{
        fs::{PermissionsExt, chown},
        process::CommandExt,
    },
    path::Path,
    process::Command,
    thread,
};

use guard::{
    control::Mode,
    history::{Fate, Kind, MAX_TEXT_BYTES, Via},
};
use guard_tests::{
    http::{ApiAnswer, ask_api},
    lab::Lab,
    product::Attach,
    wait::until,
};

#[test]
fn every_change_is_kept_with_who_asked_for_it() {
    let lab = Lab::new("every_change_is_kept");
    let guard = lab.start_guard(Attach::Tcx, "");
    let daemon = guard.pid();
    guard.tell(&["allow", "10.77.0.1", "--for", "2h", "--comment", "a visitor"]);
    guard.tell(&["deny", "10.77.0.2"]);
    guard.tell(&["remove", "2"]);
    guard.tell(&["observe", "--for", "10m"]);
    guard.tell(&["enforce"]);
    guard.configure("ports = [11434, 8081]");
    guard.hang_up();
    until("the signal's change is kept", || {
        guard.history().last().is_some_and(|entry| entry.change == Kind::Reload)
    });
    // Neither questions nor refusals are changes.
    guard.expect_refusal(&["allow", "nonsense"], &["nonsense"]);
    guard.kill();
    guard.tell(&["allow", "10.77.0.3"]);
    guard.tell(&["down"]);

    let history = guard.history();
    let told: Vec<_> = history
        .iter()
        .map(|entry| (entry.change, entry.via, entry.command.as_str(), entry.uid))
        .collect();
    let expected = [
        (Kind::Start, Via::Command, "run", Some(0)),
        (Kind::Allow, Via::Socket, "allow 10.77.0.1 for 2h comment \"a visitor\"", Some(0)),
        (Kind::Deny, Via::Socket, "deny 10.77.0.2", Some(0)),
        (Kind::Remove, Via::Socket, "remove 2", Some(0)),
        (Kind::Observe, Via::Socket, "observe for 10m", Some(0)),
        (Kind::Enforce, Via::Socket, "enforce", Some(0)),
        (Kind::Reload, Via::Signal, "reload", None),
        (Kind::Allow, Via::Command, "allow 10.77.0.3", Some(0)),
        (Kind::Down, Via::Command, "down", Some(0)),
    ];
    assert_eq!(told, expected);
    assert_eq!(history[0].pid, Some(daemon));
    for entry in &history {
        let is_signal = entry.via == Via::Signal;
        assert_eq!(entry.pid.is_none(), is_signal, "{entry:#?}");
        let claimed = entry.claimed_command_line.as_deref().unwrap_or_default();
        assert_eq!(claimed.contains("--config"), !is_signal, "{entry:#?}");
    }
    assert!(history[1].claimed_command_line.as_deref().is_some_and(|it| it.contains("--for 2h")));
    // Each begins where the one before has ended.
    for pair in history.windows(2) {
        assert!(pair[0].new_generation <= pair[1].old_generation, "{pair:#?}");
        assert!(pair[0].time <= pair[1].time, "{pair:#?}");
    }
    assert!(history[1..8].iter().all(|it| it.old_generation < it.new_generation), "{history:#?}");
    assert_eq!((history[0].old_generation, history[8].new_generation), (None, None));
    let fates: Vec<_> = history[1..4]
        .iter()
        .flat_map(|entry| &entry.rules)
        .map(|rule| (rule.change, rule.id.0.as_str(), rule.source.as_str()))
        .collect();
    let expected = [
        (Fate::Made, "1", "10.77.0.1"),
        (Fate::Made, "2", "10.77.0.2"),
        (Fate::Removed, "2", "10.77.0.2"),
    ];
    assert_eq!(fates, expected);
    let modes: Vec<_> = history[4..6].iter().map(|entry| entry.mode).collect();
    assert_eq!(modes, [Some(Mode::Observe), Some(Mode::Enforce)]);
    assert_eq!(history[0].ports.added, ["11434"]);
    assert_eq!(history[6].ports.added, ["8081"]);
    assert_eq!(history[8].ports.removed, ["8081", "11434"]);

    let log = guard.log();
    assert!(log.contains("changed by \"deny 10.77.0.2\": uid 0, pid "), "{log}");
    let text = guard.tell(&["history", "--since", "1h"]).output;
    assert_eq!(text.lines().count(), history.len());
    assert!(text.contains("\"deny 10.77.0.2\" by uid 0"), "{text}");
}

#[test]
fn what_a_process_claims_is_bounded_and_steers_no_terminal() {
    let lab = Lab::new("what_a_process_claims_is_bounded");
    let guard = lab.start_guard(Attach::Tcx, "");
    let binary = env::var_os("GUARD_BIN").unwrap_or_default();
    // Nearly as long as a command line can be (MAX_ARG_STRLEN), and again and again a source of the longest kind.
    let name = "\u{1b}[2J\u{202e}\n".repeat(12_000);
    let source = "fd77:0000:0000:0000:0000:0000:0000:0001";
    let status = Command::new(binary)
        .arg0(&name)
        .arg("--config")
        .arg(guard.configuration())
        .arg("allow")
        .args([source; 10_000])
        .output();
    assert!(status.as_ref().is_ok_and(|output| output.status.success()), "{status:?}");

    let last = guard.history().pop();
    let last = last.unwrap_or_else(|| panic!("nothing is kept"));
    let claimed = last.claimed_command_line.unwrap_or_default();
    assert!(claimed.len() <= MAX_TEXT_BYTES && claimed.starts_with("\u{1b}[2J"), "{claimed:?}");
    assert!(last.command.len() <= MAX_TEXT_BYTES, "{}", last.command);
    for arguments in [&["history"][..], &["history", "--json"]] {
        let text = guard.tell(arguments).output;
        let hostile = text.chars().filter(|c| *c != '\n').any(guard::output::text::is_unprintable);
        assert!(!hostile && text.lines().count() == 2, "{text:?}");
        assert!(text.len() < 8 << 10, "{}", text.len());
    }
    assert!(!guard.log().contains('\u{1b}'));
}

/// Asks as a user who is not root, over a socket that lets them in.
fn ask_as_member(socket: &Path, method: &str, target: &str) -> ApiAnswer {
    const MEMBER: libc::uid_t = 65_534;
    let (socket, method, target) = (socket.to_owned(), method.to_owned(), target.to_owned());
    let member = thread::spawn(move || {
        // SAFETY: the bare call changes this thread alone, which ends soon.
        let changed = unsafe { libc::syscall(libc::SYS_setresuid, -1, MEMBER, -1) };
        assert_eq!(changed, 0);
        ask_api(&socket, &method, &target, "")
    });
    member.join().unwrap_or_else(|_| panic!("the member got no answer"))
}

#[test]
fn the_group_may_read_the_history_and_not_confirm() {
    let lab = Lab::new("the_group_may_read_the_history");
    let guard = lab.start_guard(Attach::Tcx, "");
    guard.tell(&["allow", "10.77.0.1", "--confirm", "1h"]);
    let open = |path: &Path, mode| {
        assert!(fs::set_permissions(path, fs::Permissions::from_mode(mode)).is_ok());
    };
    open(lab.directory(), 0o755);
    assert!(chown(guard.socket(), Some(65_534), None).is_ok());

    let answer = ask_as_member(&guard.socket(), "GET", "/v1/history?since=3600");
    assert_eq!(answer.code, 200, "{answer:?}");
    assert_eq!(answer.json()["changes"][1]["change"], "allow", "{answer:?}");
    assert_eq!(answer.json()["damaged_lines"], 0);
    for target in ["/v1/confirm", "/v1/rollback"] {
        let answer = ask_as_member(&guard.socket(), "POST", target);
        assert_eq!(answer.code, 403, "{answer:?}");
    }
    assert!(guard.status().trial.is_some());
    assert_eq!(guard.history().len(), 2);
}

#[test]
fn a_history_that_can_not_be_written_keeps_nothing_from_being_changed() {
    let lab = Lab::new("a_history_that_can_not_be_written");
    let guard = lab.start_guard(Attach::Tcx, "");
    let file = guard.state().join("changes.jsonl");
    let kept = fs::read(&file).unwrap_or_else(|error| panic!("nothing was kept: {error}"));
    assert!(fs::remove_file(&file).and_then(|()| fs::create_dir(&file)).is_ok());
    guard.tell(&["allow", "10.77.0.1"]);
    assert_eq!(guard.rules().len(), 1);
    assert!(guard.log().contains("not in the history"), "{}", guard.log());
    guard.expect_refusal(&["history"], &["changes.jsonl", "move it away"]);

    // Half a line, as a crash in the middle of writing leaves it.
    let torn = [&kept[..], &kept[..kept.len() / 2]].concat();
    assert!(fs::remove_dir(&file).and_then(|()| fs::write(&file, torn)).is_ok());
    guard.tell(&["allow", "10.77.0.2"]);
    let kinds: Vec<_> = guard.history().iter().map(|entry| entry.change).collect();
    assert_eq!(kinds, [Kind::Start, Kind::Allow]);
    let told = guard.ask(&["history"]).errors;
    assert!(told.contains("1 line of the history can't be read"), "{told}");
}
