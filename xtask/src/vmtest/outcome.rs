//! What a machine's console says of the tests.

/// What became of a run.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    passed: usize,
    failed: usize,
    /// Tests that this kernel misses something for, with what it is.
    skipped: Vec<String>,
    /// Parts of tests, likewise.
    left_out: Vec<String>,
    /// Programs that were started and have not said how it went.
    unfinished: Vec<String>,
    /// The guest's last word: it has run everything.
    done: bool,
    failure: Option<String>,
}

impl Outcome {
    /// Takes in a line of the console.
    pub fn read(&mut self, line: &str) {
        // A skipping test may write behind the test runner's unfinished line.
        if let Some((_, skipped)) = line.split_once("skipped: ") {
            self.skipped.push(skipped.to_owned());
        } else if let Some((_, part)) = line.split_once("left out: ") {
            self.left_out.push(part.to_owned());
        } else if let Some(counts) = line.strip_prefix("test result: ") {
            self.passed += count(counts, "passed");
            self.failed += count(counts, "failed");
            self.unfinished.pop();
        } else if let Some(word) = line.strip_prefix("vmtest: ") {
            self.read_word(word);
        }
    }

    fn read_word(&mut self, word: &str) {
        if let Some(program) = word.strip_prefix("run ") {
            self.unfinished.push(program.to_owned());
        } else if let Some(failure) = word.strip_prefix("failed: ") {
            self.failure = Some(failure.to_owned());
        } else if word == "done" {
            self.done = true;
        }
    }

    /// Why the run says less than it should.
    pub fn problem(&self) -> Option<String> {
        if let Some(failure) = &self.failure {
            Some(failure.clone())
        } else if !self.unfinished.is_empty() {
            Some(format!("{} ended in the middle", self.unfinished.join(" and ")))
        } else if !self.done {
            Some("the machine ended in the middle".to_owned())
        } else if self.passed + self.failed == 0 {
            Some("no test has such a name".to_owned())
        } else {
            None
        }
    }

    pub fn is_good(&self) -> bool {
        self.failed == 0 && self.problem().is_none()
    }

    /// `29 passed, 0 failed`, with those that were left out.
    pub fn summary(&self) -> String {
        // To the test runner, a test that leaves itself out has passed.
        let passed = self.passed.saturating_sub(self.skipped.len());
        let skipped = match self.skipped.len() {
            0 => String::new(),
            count => format!(", {count} skipped"),
        };
        format!("{passed} passed, {} failed{skipped}", self.failed)
    }

    /// What was not tested, and for want of what.
    pub fn omissions(&self) -> impl Iterator<Item = &str> {
        self.skipped.iter().chain(&self.left_out).map(String::as_str)
    }
}

/// The number before a word, in `ok. 5 passed; 0 failed; …`.
fn count(text: &str, word: &str) -> usize {
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    words
        .windows(2)
        .find(|pair| pair[1].trim_end_matches(';') == word)
        .and_then(|pair| pair[0].parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(text: &str) -> Outcome {
        let mut outcome = Outcome::default();
        text.lines().for_each(|line| outcome.read(line));
        outcome
    }

    #[test]
    fn what_passed_failed_and_was_left_out_is_counted() {
        let good = outcome(
            "vmtest: run access\ntest a ... skipped: a::tcx: TCX needs kernel 6.6\nok\nleft out: vxlan: unknown device type\ntest b ... ok\n\
             test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 9 filtered out; finished in 1s\n\
             vmtest: ran access: exit 0 after 1.0 s\nvmtest: done",
        );
        assert!(good.is_good(), "{good:?}");
        assert_eq!(good.summary(), "1 passed, 0 failed, 1 skipped");
        let omissions: Vec<&str> = good.omissions().collect();
        assert_eq!(omissions, ["a::tcx: TCX needs kernel 6.6", "vxlan: unknown device type"]);

        let bad = outcome(
            "vmtest: run access\ntest result: FAILED. 2 passed; 1 failed; 0 ignored;\nvmtest: done",
        );
        assert!(!bad.is_good());
        assert_eq!((bad.summary().as_str(), bad.problem()), ("2 passed, 1 failed", None));
    }

    #[test]
    fn a_machine_that_ends_early_is_no_pass() {
        let result = "test result: ok. 1 passed; 0 failed;";
        for (text, problem) in [
            (format!("vmtest: run access\n{result}"), "the machine ended in the middle"),
            (
                format!("vmtest: run a\n{result}\nvmtest: run b\nvmtest: done"),
                "b ended in the middle",
            ),
            ("vmtest: failed: /plan can't be read".to_owned(), "/plan can't be read"),
            (
                "vmtest: run a\ntest result: ok. 0 passed; 0 failed;\nvmtest: done".to_owned(),
                "no test has such a name",
            ),
            (String::new(), "the machine ended in the middle"),
        ] {
            let outcome = outcome(&text);
            assert!(!outcome.is_good(), "{text}");
            assert_eq!(outcome.problem().as_deref(), Some(problem), "{text}");
        }
    }
}
