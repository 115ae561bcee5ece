//! What commands print: text for people, JSON for programs. Standard output is data, standard error is talk.
