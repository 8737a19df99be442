// Package raftwire is a raft.Transport around another one, for servers that do not trust what the other
// members send.
//
// Raft believes what a member sends. Some of it makes raft panic after it has put it into its log, so that every
// later start panics too: an entry of an unknown type, a configuration that does not decode, a gap in the log.
// Some of it brings raft into a state from which no election leads: a term near the largest number. So each
// request of another server is checked before raft has it, and one that does not pass is answered with an error.
//
// A member that keeps to these checks can do what Raft's members do: lead, and have others follow.
//
// Requests that carry many bytes are split: raft bounds how many entries go in one, and not how many bytes.
package raftwire
