// Package records is a map of sealed records, for the FSM of a host with a keyring.
//
// A host that keeps what it has sealed in its own raft needs five things: a fence in its Apply, an index from keys to
// records, swaps that replace a ciphertext only if it is still there, scans that read one state while Apply goes on, and
// writes that are sealed again when the key was rotated meanwhile. A [Map] has them. With it full rotation and the
// removal of keys work, and the host does nothing else for them.
//
// A Map is a raft.FSM and a keyring.SealedData. A host that has a Node:
//
//	keys := keyring.NewFSM()
//	m := records.New(keys)
//	n, err := node.Start(ctx, node.Config{Dir: dir, KEKs: []keyring.KEK{kek}, App: m, Keys: keys, Data: m})
//	if err != nil {
//		return err
//	}
//	m.Connect(n.Keyring(), n.Apply)
//	if err := n.Keyring().WaitReady(ctx); err != nil {
//		return err
//	}
//	version, err := m.Put(ctx, records.Write{Name: "db/password", Parts: [][]byte{secret}})
//	if err != nil {
//		return err
//	}
//	r, parts, err := m.Open("db/password")
//
// A host with a raft of its own:
//
//	keys := keyring.NewFSM()
//	m := records.New(keys)
//	r, err := raft.NewRaft(conf, keyring.Mux(keys, m), logs, stable, snapshots, transport)
//	if err != nil {
//		return err
//	}
//	k, err := keyring.Open(ctx, keyring.Config{Dir: dir, ID: conf.LocalID, Raft: r, FSM: keys, KEKs: []keyring.KEK{kek}, Data: m})
//	if err != nil {
//		return err
//	}
//	m.Connect(k, records.Through(r))
//
// After a full rotation, keyring.RotateOptions.Full, the leader moves all records to the new key. The example does that.
// docs/records.md of the repository says more.
//
// # Writes and reads
//
// Put is for the leader: only the leader seals. On another server the error names the leader, and the host sends the writes there
// by a call of its own, whose handler calls Put. They are in the clear: the connection has to be encrypted. A [Write] encodes as
// JSON. Open works on every server, and reads what this one has applied.
//
//	var elsewhere keyring.NotLeaderError
//	if errors.As(err, &elsewhere) && !errors.Is(err, records.ErrUncertain) {
//		version, err = callPut(ctx, elsewhere.Leader, write)
//	}
//
// # A Map in another FSM
//
// A host with other state has an FSM of its own, with the Map in it. It hands on the commands that [Is] says are the Map's, and
// writes a section of the Map into its snapshots: see the example "host".
//
//	func (v *visitors) Apply(l *raft.Log) any {
//		if records.Is(l.Data) {
//			return v.secrets.Apply(l) // its answer is for Put
//		}
//		return v.visits.Add(1)
//	}
//
// Its Apply may read a View, and never calls Open: a server that has not fetched the key yet would apply something else than the
// others. What Apply has to know of a record is in its name or in Meta. See keyring.Mux.
//
// [View.WriteTo] writes the section, and [Map.RestoreFrom] reads it, and not a byte more. It goes first: what decodes JSON from
// a reader reads further than it needs. Where old snapshots have no section, Restore reads 8 bytes ahead, asks Is, and calls
// [Map.RestorePlain] instead. A host that decides by its own state whether a write may go on gives Connect a function that puts
// the bytes of the Map into a command of its own, and calls Map.Apply with them there, in a raft.Log with the Index of the entry.
//
// # Records
//
// A record is a name, the host's own bytes in the clear, and up to 64 sealed parts, each of them perhaps under another key.
// A name may be any bytes. A part is bound to the name and to its number: see [AAD]. In another record, or as another part, it
// does not open. Meta is bound to nothing: anybody who can alter raft's files can alter it. An FSM has one Map. Kinds of records
// have prefixes in their names.
//
// # From plaintext
//
// A host that had its data in the clear hands it to the Map in the clear: [Map.RestorePlain] for its old snapshots,
// [Map.SetPlain] and [Map.Delete] for the commands of its old log. Once a key is active the leader seals these parts, as fast as
// Config.RekeyRate allows, and each new leader goes on with those that are left. Status.Rekeying has the progress under the zero
// KeyID, and [Map.Count] of the zero KeyID is how many are left on this server. examples/watchmap is such a host.
//
// As long as there was no command of the Map's ([View.Index] is zero), such a host writes its snapshots in its old format, so
// that a server with its old build can read them. Every server has a build with the Map before the first command of the Map's,
// because others can't apply it. For a host that had no keyring, the keyring sees to that before it makes the first key. A host
// that had a keyring before it had a Map needs two steps: a build with the Map in its FSM whose Config.Data is what it was, on
// every server, and then one that gives the Map to Config.Data and calls Put.
//
// What was in the clear stays in raft's files, and its SHA-256 in the entries that seal it, as long as these files have anything
// up to the last of those entries. A snapshot alone does not end that: raft keeps TrailingLogs entries behind it. docs/records.md
// says what does.
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
// 1024 bytes, a record at most 64 parts and 64 MiB. Anything else is refused, and changes nothing.
//
// A build that meets a command of a version that it does not know makes no snapshots from then on, refuses later commands,
// and yields no scan, until it runs a build that does. testdata/v1.snapshot is a snapshot of version 1.
package records
