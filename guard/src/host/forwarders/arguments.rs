//! Where a forwarder leads, read from its command line. Pure.

/// A forwarder that is known by its process's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Docker's, one process for each published port and family. Rootless Docker has it inside its own network namespace.
    DockerProxy,
    /// Rootless Docker's and nerdctl's; its command line may name no port.
    RootlessKit,
    /// Rootless Podman's; its ports come over standard input, where nobody else can read them.
    RootlessPort,
    /// Forwards ports where Podman is told so; they come over a socket.
    Slirp4netns,
    /// Also called passt, for virtual machines.
    Pasta,
}

impl Kind {
    /// By the name that the kernel shows, cut to 15 bytes, and the first word of the command line.
    pub fn of(name: &str, first_word: &str) -> Option<Self> {
        // Podman up to 3 runs itself by another first word, and the kernel shows how: `/proc/self/exe`.
        let name = if name == "exe" { first_word } else { name };
        match name {
            "docker-proxy" | "rootlesskit-doc" => Some(Self::DockerProxy),
            "rootlesskit" => Some(Self::RootlessKit),
            "rootlessport" | "containers-rootlessport" => Some(Self::RootlessPort),
            "slirp4netns" => Some(Self::Slirp4netns),
            "pasta" | "pasta.avx2" | "passt" | "passt.avx2" => Some(Self::Pasta),
            _ => None,
        }
    }

    /// The name for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::DockerProxy => "docker-proxy",
            Self::RootlessKit => "rootlesskit",
            Self::RootlessPort => "rootlessport",
            Self::Slirp4netns => "slirp4netns",
            Self::Pasta => "pasta",
        }
    }
}

/// From which port to which a docker-proxy forwards; `None` where it is not TCP or not to be read.
pub fn docker_proxy(arguments: &[String]) -> Option<(u16, u16)> {
    let [protocol] = options(arguments, &["-proto", "--proto"])[..] else { return None };
    let port = |names| match options(arguments, names)[..] {
        [port] => port.parse().ok(),
        _ => None,
    };
    let from = port(&["-host-port", "--host-port"])?;
    let to = port(&["-container-port", "--container-port"])?;
    (protocol == "tcp").then_some((from, to))
}

/// Where rootlesskit was told to lead `port`: `--publish=[IP:]FROM:TO/tcp`.
pub fn rootlesskit(arguments: &[String], port: u16) -> Option<u16> {
    let published = options(arguments, &["-p", "--publish"]);
    published.into_iter().find_map(|text| {
        let (ports, protocol) = text.rsplit_once('/')?;
        let mut numbers = ports.rsplitn(3, ':');
        let to = numbers.next()?.parse().ok()?;
        let from: u16 = numbers.next()?.parse().ok()?;
        (protocol.starts_with("tcp") && from == port).then_some(to)
    })
}

/// Where pasta leads `port`: `--tcp-ports=[ADDRESS[%INTERFACE]/]FROM[-FROM][:TO[-TO]],…`, and to the same number where
/// that names none (`auto`, `all`).
pub fn pasta(arguments: &[String], port: u16) -> u16 {
    let specifications = options(arguments, &["-t", "--tcp-ports"]);
    let leads = specifications.into_iter().find_map(|text| {
        let ports = text.rsplit_once('/').map_or(text, |(_, ports)| ports);
        ports.split(',').find_map(|part| {
            let (from, to) = part.split_once(':')?;
            let (first, last) = range(from)?;
            let (to, _) = range(to)?;
            (first..=last).contains(&port).then(|| to.checked_add(port - first)).flatten()
        })
    });
    leads.unwrap_or(port)
}

/// The process in whose network namespace slirp4netns works; `None` where it was given something else.
pub fn slirp4netns(arguments: &[String]) -> Option<u32> {
    // Its last words are the namespace and the device to make there.
    let [.., namespace, _] = arguments else { return None };
    namespace.parse().ok()
}

fn range(text: &str) -> Option<(u16, u16)> {
    match text.split_once('-') {
        Some((first, last)) => Some((first.parse().ok()?, last.parse().ok()?)),
        None => text.parse().ok().map(|port| (port, port)),
    }
}

/// The values of an option: `-p V`, `-p=V`, `-pV` where its name has one letter.
fn options<'a>(arguments: &'a [String], names: &[&str]) -> Vec<&'a str> {
    let mut values = Vec::new();
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        for name in names {
            let Some(rest) = word.strip_prefix(name) else { continue };
            if rest.is_empty() {
                values.extend(words.next().map(String::as_str));
            } else if let Some(value) = rest.strip_prefix('=') {
                values.push(value);
            } else if name.len() == 2 {
                values.push(rest);
            } else {
                continue;
            }
            break;
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn forwarders_are_known_by_their_names() {
        for (name, first_word, kind) in [
            ("docker-proxy", "/usr/bin/docker-proxy", Some(Kind::DockerProxy)),
            ("rootlesskit-doc", "rootlesskit-docker-proxy", Some(Kind::DockerProxy)),
            ("rootlesskit", "rootlesskit", Some(Kind::RootlessKit)),
            ("rootlessport", "rootlessport", Some(Kind::RootlessPort)),
            ("exe", "containers-rootlessport", Some(Kind::RootlessPort)),
            ("exe", "rootlessport-child", None),
            ("exe", "/proc/self/exe", None),
            ("slirp4netns", "/usr/bin/slirp4netns", Some(Kind::Slirp4netns)),
            ("pasta.avx2", "/usr/bin/pasta.avx2", Some(Kind::Pasta)),
            ("nginx", "docker-proxy", None),
            ("docker-proxy2", "docker-proxy", None),
            ("", "", None),
        ] {
            assert_eq!(Kind::of(name, first_word), kind, "{name} {first_word}");
        }
    }

    #[test]
    fn docker_proxy_names_both_ports() {
        for (line, ports) in [
            (
                "/usr/sbin/docker-proxy -proto tcp -host-ip :: -host-port 8081 -container-ip 172.17.0.2 \
                 -container-port 11434",
                Some((8081, 11434)),
            ),
            (
                "docker-proxy --proto=tcp --host-port=8081 --container-port=11434 -use-listen-fd",
                Some((8081, 11434)),
            ),
            ("docker-proxy -proto udp -host-port 8081 -container-port 11434", None),
            ("docker-proxy -proto sctp -host-port 8081 -container-port 11434", None),
            ("docker-proxy -proto tcp -host-port 8081", None),
            ("docker-proxy -proto tcp -host-port 8081 -container-port", None),
            ("docker-proxy -proto tcp -host-port 8081 -container-port 70000", None),
            ("docker-proxy -proto tcp -host-port 8081 -container-port 1 -container-port 2", None),
            ("docker-proxy", None),
            ("", None),
        ] {
            assert_eq!(docker_proxy(&words(line)), ports, "{line}");
        }
    }

    #[test]
    fn rootlesskit_publishes_by_its_command_line_or_not() {
        let line = words(
            "rootlesskit --net=slirp4netns --port-driver=builtin -p 8081:11434/tcp \
             --publish=127.0.0.1:8082:11435/tcp4 --publish [::]:8083:11436/tcp6 -p 8084:11437/udp \
             -p broken -p 8085:x/tcp dockerd",
        );
        for (port, to) in [
            (8081, Some(11434)),
            (8082, Some(11435)),
            (8083, Some(11436)),
            (8084, None),
            (8085, None),
            (11434, None),
        ] {
            assert_eq!(rootlesskit(&line, port), to, "{port}");
        }
    }

    #[test]
    fn pasta_maps_ports_and_ranges() {
        let line = words(
            "/usr/bin/pasta --config-net -t 8081-8081:11434-11434 -t192.0.2.4%eth0/9000-9003:8000-8003,22 \
             --tcp-ports=~25,3000:11434 -u 8090:11434 --netns /run/user/1000/netns/x",
        );
        for (port, to) in [
            (8081, 11434),
            (9000, 8000),
            (9003, 8003),
            (9004, 9004),
            (22, 22),
            (25, 25),
            (3000, 11434),
            (8090, 8090),
        ] {
            assert_eq!(pasta(&line, port), to, "{port}");
        }
        for text in ["-t auto", "-t all", "-t", "", "-t 1-x:2", "-t 1:y", "-t 65535:1:2"] {
            assert_eq!(pasta(&words(text), 65535), 65535, "{text}");
        }
        // A range that would lead beyond the last port.
        assert_eq!(pasta(&words("-t 1-10:65530"), 10), 10);
    }

    #[test]
    fn slirp4netns_is_given_a_process_or_a_file() {
        assert_eq!(slirp4netns(&words("slirp4netns -c -e 3 -r 4 812 tap0")), Some(812));
        let by_file = "slirp4netns -c --netns-type=path /run/user/1000/netns/x tap0";
        assert_eq!(slirp4netns(&words(by_file)), None);
        assert_eq!(slirp4netns(&words("slirp4netns")), None);
        assert_eq!(slirp4netns(&[]), None);
    }
}
