// Package records is a map of sealed records, for the FSM of a host with a keyring.
//
// A host that keeps what it has sealed in its own raft needs five things: a fence in its Apply, an index from keys to
// records, swaps that replace a ciphertext only if it is still there, scans that read one state while Apply goes on, and
// writes that are sealed once more when the key was rotated meanwhile. A [Map] has them. With it full rotation and the
// removal of keys work, and the host does nothing else for them.
//
// A Map is a raft.FSM and a keyring.SealedData. It is all of a host's FSM, or a part of it. A host whose FSM is the Map:
//
//	keys := keyring.NewFSM()
//	m := records.New(keys)
//	n, err := node.Start(ctx, node.Config{ ..., App: m, Keys: keys, Data: m})
//	...
//	m.Connect(n.Keyring(), n.Apply) // or records.Through(r), for a raft of the host's own
//	version, err := m.Put(ctx, records.Write{Name: "db/password", Parts: [][]byte{secret}})
//	r, parts, err := m.Open("db/password")
//
// A host with a state of its own has the Map beside that, hands on the commands that [Is] says are the Map's, and writes a
// section of the Map into its snapshots:
//
//	func (a *app) Apply(l *raft.Log) any {
//		if records.Is(l.Data) {
//			return a.records.Apply(l)
//		}
//		...
//	}
//
// [View.WriteTo] writes the section, and [Map.RestoreFrom] reads it, and not a byte more. A host that decides by its own
// state whether a write may go on puts the bytes that the Map proposes into a command of its own, and calls Apply with them
// there.
//
// # Records
//
// A record is a name, the host's own bytes in the clear, and up to 64 sealed parts, each of them perhaps under another key.
// A part is bound to the name and to its number: see [AAD]. In another record, or as another part, it does not open. Meta is
// bound to nothing: who can alter raft's files can alter it. An FSM has one Map. Kinds of records have prefixes in their names.
//
// # From plaintext
//
// A host that had its data in the clear hands it to the Map in the clear: [Map.RestorePlain] for its old snapshots,
// [Map.SetPlain] and [Map.Delete] for the commands of its old log. The zero KeyID stands for the key of such parts:
// [Map.Under] yields them, [Map.Count] counts them. Once there is a key the leader calls [Map.SealPlain], which replaces
// them as a full rotation replaces others. As long as there was no command of the Map's ([View.Index] is zero), such a host
// writes its snapshots in its old format, so that a server can read them that has yet to get the new build.
//
// A host that had the keyring before it had a Map gives every server a build with the Map before the first Put: others can't
// apply its commands. For a host that had no keyring, the keyring sees to that before it makes the first key.
//
// What was in the clear stays in raft's files until these have nothing from before the last entry that SealPlain has
// proposed: take a snapshot after that on each server, and mind older snapshots and the log entries that raft keeps behind
// a snapshot. These entries have the SHA-256 of what they seal.
//
// # Formats
//
// Integers are unsigned varints as in encoding/binary, in as few bytes as possible, where no width is given. bytes are a
// length and as many bytes. A command is
//
//	0xC1 "records" | kind 1 | version 1 = 0x01 | count | entries
//
// and ends after its last entry. No text in UTF-8 and no message in msgpack begins with 0xC1. The entries of kind 'w', which
// writes all of them or none, are
//
//	flags | [If] | name bytes | meta bytes | count of parts | parts bytes...
//
// Flag 1 says that there is an If, flag 2 that the record is deleted: then it has neither meta nor parts. Names are there
// once. The entries of kind 's', which swaps each part that is still the old one, are
//
//	name bytes | part | SHA-256 of the old part 32 | new part bytes
//
// A snapshot, or the section of one, is
//
//	0xC1 "records" | 'S' | version 1 = 0x01 | length 8, big endian | section | SHA-256 of all before 32
//
// A section is the index of the last entry of raft's log that was a command, and then the records, in the order of their names:
//
//	name bytes | version | meta bytes | mask of plaintext parts | count of parts | parts bytes...
//
// Bit i of the mask says that part i is in the clear. The same state has the same bytes on every server. A name has 1 to
// 1024 bytes, a record at most 64 parts and 64 MiB. What keeps to anything else is refused, and changes nothing.
//
// A build that meets a command of a version that it does not know makes no snapshots from then on, refuses later commands,
// and yields no scan, until it runs a build that does. testdata/v1.snapshot is a snapshot of version 1.
package records
