//! Names of the machine's users.

use lampyris_proto::words::name_problem;
use std::fs::File;
use std::io::{BufRead, BufReader};

/// The name of a user, as /etc/passwd has it; the number where it has none, as `ls` shows it.
pub(super) fn name_of(uid: u32) -> String {
    let found = File::open("/etc/passwd").ok().and_then(|file| find(BufReader::new(file), uid));
    found.unwrap_or_else(|| uid.to_string())
}

fn find(passwd: impl BufRead, uid: u32) -> Option<String> {
    let uid = uid.to_string();
    passwd.lines().map_while(Result::ok).find_map(|line| {
        let mut fields = line.split(':');
        let (name, number) = (fields.next()?, fields.nth(1)?);
        (number == uid && name_problem(name).is_none()).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_have_names_or_numbers() {
        let passwd =
            "root:x:0:0:root:/root:/bin/sh\n# odd\n\nann:x:1000:100::/home/ann:/bin/sh\n:x:7:7\n";
        assert_eq!(find(passwd.as_bytes(), 1000).as_deref(), Some("ann"));
        assert_eq!(find(passwd.as_bytes(), 0).as_deref(), Some("root"));
        assert_eq!(find(passwd.as_bytes(), 100), None);
        assert_eq!(find(passwd.as_bytes(), 7), None);
        assert_eq!(name_of(u32::MAX - 7), (u32::MAX - 7).to_string());
    }
}
