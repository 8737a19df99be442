// Package records is a map of encrypted records, for the FSM of a host with a keyring.
//
// A host that keeps its ciphertexts in its own raft needs five things:
//
//   - a call of Admit in its Apply;
//   - an index from keys to records;
//   - replacements of a ciphertext that happen only if it is still there;
//   - scans that read one state while Apply goes on;
//   - writes that are encrypted again if the key was rotated meanwhile.
//
// A [Map] has them. With it full rotation and the removal of keys work, and the host does nothing else for
// them.
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
// With a full rotation, keyring.RotateOptions.Full, the leader re-encrypts all records under the new key. The
// example does that. docs/records.md of the repository says more.
//
// # Writes and reads
//
// Put works on the leader only, because only the leader encrypts. On another server the error names the
// leader, and the host forwards the writes to it by a call of its own, whose handler calls Put. The writes
// contain plaintexts, so the connection must be encrypted. A [Write] encodes as JSON. Open works on every
// server, and reads what that server has applied.
//
//	var elsewhere keyring.NotLeaderError
//	if errors.As(err, &elsewhere) && !errors.Is(err, records.ErrUncertain) {
//		version, err = callPut(ctx, elsewhere.Leader, write)
//	}
//
// # A Map in another FSM
//
// A host with other state has an FSM of its own that contains the Map. It passes those commands to the Map
// for which [Is] is true, and writes a section of the Map into its snapshots: see the example "host".
//
//	func (v *visitors) Apply(l *raft.Log) any {
//		if records.Is(l.Data) {
//			return v.secrets.Apply(l) // its answer is for Put
//		}
//		return v.visits.Add(1)
//	}
//
// Its Apply may read a View, but must never call Open: a server that has not fetched the key yet would get
// another result than the others. Put whatever Apply must know of a record into its name or into Meta. See
// keyring.Mux.
//
// [View.WriteTo] writes the section, and [Map.RestoreFrom] reads exactly the section. Put the section first
// in the snapshot, because a JSON decoder reads further than it needs. If old snapshots have no section,
// Restore peeks at 8 bytes, calls Is, and calls [Map.RestorePlain] if that is false.
//
// A host may decide by its own state whether a write may go on. Then it gives Connect a function that puts
// the bytes of the Map into a command of its own. The host's Apply calls Map.Apply with these bytes, in a
// raft.Log with the Index of the entry.
//
// # Records
//
// A record consists of a name, the host's own bytes in the clear (Meta), and up to 64 encrypted parts, which
// may be under different keys. A name may be any bytes. A part is bound to the name and to its number: see
// [AAD]. It can't be decrypted in another record, or as another part. Meta is bound to nothing: anyone who
// can alter raft's files can alter it. An FSM has one Map. Use prefixes in names for kinds of records.
//
// # From plaintext
//
// A host that had its data in the clear passes it to the Map in the clear: [Map.RestorePlain] for its old
// snapshots, [Map.SetPlain] and [Map.Delete] for the commands of its old log. Once a key is active the leader
// encrypts these parts, as fast as Config.RekeyRate allows; a new leader continues. Status.Rekeying has the
// progress under the zero KeyID, and [Map.Count] of the zero KeyID is the number of parts that are left on
// this server. examples/watchmap is such a host.
//
// Until the first command of the Map ([View.Index] is zero), such a host writes its snapshots in its old
// format, so that a server with the old build can read them. Before that first command, every server must
// have a build with the Map, because others can't apply it. If the host had no keyring before, the keyring
// makes sure of that before it makes the first key. If the host had a keyring before the Map, it needs two
// steps: first, on every server, a build with the Map in its FSM and the old Config.Data; then a build that
// gives the Map to Config.Data and calls Put.
//
// The plaintexts stay in raft's files, and their SHA-256 in the entries that encrypt them, as long as these
// files have any entry up to the last of those. A snapshot alone does not end that, because raft keeps
// TrailingLogs entries behind it. docs/records.md says what does.
//
// # Formats
//
// Integers are unsigned varints as in encoding/binary, of minimal length, where no width is given. "bytes" is
// a length and that many bytes. A command is
//
//	0xC1 "records" | kind 1 | version 1 = 0x01 | count | entries
//
// and ends after its last entry. No UTF-8 text and no msgpack message begins with 0xC1. Entries of kind 'w'
// are writes, all of which are executed or none:
//
//	flags | [If] | name bytes | meta bytes | count of parts | parts bytes...
//
// Flag 1 says that there is an If. Flag 2 says that the record is deleted; then there are no meta and no
// parts. Each name occurs once. Entries of kind 's' are replacements, each of which is executed if the part
// is still the old one:
//
//	name bytes | part | SHA-256 of the old part 32 | new part bytes
//
// A snapshot, or the section of one, is
//
//	0xC1 "records" | 'S' | version 1 = 0x01 | length 8, big endian | section | SHA-256 of all before 32
//
// A section is the index of the last entry of raft's log that was a command, and then the records, in the
// order of their names:
//
//	name bytes | version | meta bytes | mask of plaintext parts | count of parts | parts bytes...
//
// Bit i of the mask says that part i is in the clear. The same state has the same bytes on every server. A
// name has 1 to 1024 bytes, a record at most 64 parts and 64 MiB. Anything else is refused, and changes
// nothing.
//
// A build that reads a command of an unknown version then makes no snapshots, rejects later commands, and
// yields no scan, until a build that knows the version runs. testdata/v1.snapshot is a snapshot of version 1.
package records
