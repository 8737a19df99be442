// Package keyring gives a service on hashicorp/raft an encryption and signing keyring.
//
// The leader encrypts and signs. Every server decrypts and verifies. Keys rotate by themselves. Losing any
// single server of three, even in the middle of a rotation, never makes data undecryptable.
//
// Key metadata lives in a raft FSM. Key material never does: each server keeps it in its own directory, one
// <key id>.nks.json file a key, wrapped under key encryption keys that no other server has. A server that
// lacks a key fetches it from the others.
//
// # Start
//
// The program that embeds this library is its host. One without a raft of its own starts a whole server with
// package node:
//
//	n, err := node.Start(ctx, node.Config{
//		Dir:  dir,
//		KEKs: []keyring.KEK{kek}, // see FileKEK
//	})
//	if err != nil {
//		return err
//	}
//	defer n.Close()
//	if err := n.Keyring().WaitReady(ctx); err != nil {
//		return err
//	}
//	ciphertext, err := n.Encrypt(ctx, []byte("secret"), []byte("users/7"))
//	if err != nil {
//		return err
//	}
//	plaintext, err := n.Decrypt(ctx, ciphertext, []byte("users/7"))
//
// A host that has a raft gives it the FSM of [NewFSM], alone or in a [Mux] with its own FSM, and opens the
// keyring on that raft:
//
//	fsm := keyring.NewFSM()
//	r, err := raft.NewRaft(conf, keyring.Mux(fsm, app), logs, stable, snapshots, transport)
//	if err != nil {
//		return err
//	}
//	keys, err := keyring.Open(ctx, keyring.Config{
//		Dir: dir, ID: conf.LocalID, Raft: r, FSM: fsm, Transport: peers, KEKs: []keyring.KEK{kek},
//	})
//
// Package port has the transport and the Transport of such a host, on one port; the module grpc has them for
// a grpc.Server. The example of [Open] runs as it is.
//
// # Where to go next
//
//   - Encrypt data: [Keyring.Encrypt], [Keyring.Decrypt]. A host that keeps the ciphertexts in its raft takes
//     the map of package records, or writes them through [Keyring.EncryptTo] and asks [FSM.Admit] in its
//     Apply.
//   - Sign tokens: [Keyring.Sign], [Keyring.Verify], and [Keyring.WellKnown] for relying parties;
//     [TokenPolicy].
//   - Rotate and remove keys: [RotationPolicy], [Keyring.Rotate], [Keyring.Remove]; [SealedData] for a full
//     rotation.
//   - Protect the key files: [FileKEK], [PassphraseKEK], [AgeKEK] as escrow, and the module kms.
//     [Keyring.Rewrap] changes them.
//   - Change the members on the leader: [Keyring.AddVoter], [Keyring.AddNonvoter], [Keyring.PromoteServer],
//     [Keyring.DemoteServer], [Keyring.RemoveServer], [Keyring.ReadmitServer] and
//     [Keyring.TransferLeadership]; join tokens, see [JoinConn]. [Keyring.Leave] removes the server on which
//     it is called.
//   - Back up: [BackupSchedule], [Keyring.WriteBackup], [VerifyBackup], [Restore].
//   - Operate: [Keyring.Status], package admin, Config.Audit, Config.Metrics with packages gometrics and
//     prometheus. Config.Problems adds what is wrong with the host's part to [Status].
//
// README.md and docs/README.md of the repository have a page for each subject, and for each kind of trouble.
//
// # Words
//
//	host       the program that embeds this package
//	root key   32 random bytes and one signing key pair, named by a UUID; immutable
//	material   the secret part of a root key; metadata is the rest, with the public key
//	ring       the metadata of all keys, as the FSM of a server has it
//	KEK        key encryption key: wraps material on one server; never shared, never in raft
//	seal       encrypt; open is decrypt
//	rotate     make a new active key
//	rekey      re-encrypt the host's data under the active key
//	rewrap     wrap the same material under other KEKs
//	holder     a server on whose disk a key is safe: file and directory are synced, and the file was read back, unwrapped
//	           and compared with the check value
//	orphan     a key file without metadata in the FSM
//	tombstone  what the ring keeps of a removed key, so that its ID is never used again
//
// # Key states
//
//	prepublished --activate--> active --rotate--> inactive --> rekeying --> deprecated --> removed
//
// What a key does follows from its state:
//
//   - A prepublished key is known to all servers, and nothing is encrypted under it.
//   - At most one key is active. It encrypts and signs, on the leader.
//   - Inactive and rekeying keys decrypt.
//   - A deprecated key decrypts only through [Keyring.DecryptDeprecated], unless it was adopted: a ciphertext
//     under it is a copy, or forged.
//
// A key never returns to an earlier state. The tokens of inactive, rekeying and deprecated keys verify for
// TokenPolicy.MaxTTL and the leeway after the key was retired, unless the key is revoked.
//
// A rekeying key becomes deprecated, and can be removed, when a scan of the host's data has found nothing
// under it. A key is removed only if the operator or RotationPolicy.Retain asks for it. Only prepublished
// keys, under which nothing is encrypted, are removed without that: one of which every server has said that
// it has no material, and the other ones when a full rotation activates its key. The file of a removed key is
// set aside for a while, so that a snapshot from before the removal brings the key back.
//
// # Invariants
//
//	I1   No material, wrapped or not, enters the raft log, a raft snapshot, a log line, an error, a metric or a temporary
//	     file that outlives the call.
//	I2   At most one key is active, on every server, at every index.
//	I3   A key becomes active only if a majority of the voters has just said that they hold it. Otherwise the FSM refuses
//	     the command. An active key that came with a snapshot encrypts and signs only after a majority of the voters has
//	     told this leader since then that they hold it.
//	I4   Only the active key encrypts or signs, and only on a leader that has applied the barrier of its own term and has
//	     read the ring after that. Before, the call returns ErrNotReady.
//	I5   Every holder of a key decrypts its ciphertexts until a scan has found nothing under that key, and with
//	     DecryptDeprecated for as long as the key is in the FSM. Without force, a key can't be removed while a record in
//	     this raft is encrypted under it, if the host's Apply asks [FSM.Admit].
//	I6   A fetched or loaded key is used only if it matches the check value in the FSM.
//	I7   Apply is total and deterministic: no clock, no randomness, no map order, no I/O, no panic. The same log gives
//	     byte-equal snapshots on every server.
//	I8   A key file is only created, replaced whole by rename, set aside, or unlinked after its tombstone. The ring makes
//	     a server rename or unlink a file only after the server has caught up with a leader since its start. A crash at
//	     any point, a full disk or a failed sync loses no key, and leaves nothing that prevents a start.
//	I9   Every running server that can reach one holder of a key becomes a holder, no matter which other keys are lost or
//	     which servers are down. There is one exception: if the server has a file of the key that it can't use now, it
//	     waits for that file. The KEK may not answer; or the file may be unreadable, another user's, or of a newer build.
//	I10  After Close no goroutine of the package runs, and the key bytes that the package owns are overwritten. If
//	     something ignores its context and hangs, such as a function of the host, Close returns an error after a while,
//	     and the last goroutine ends when that returns.
//
// I10 does not cover the ciphers that crypto/aes has expanded, the signing keys of crypto/rsa and
// crypto/ecdsa, and the buffers in which age encrypts and decrypts for [AgeKEK]: they are left to the garbage
// collector. In a build with GOEXPERIMENT=runtimesecret it overwrites the ciphers, and what parsing made of
// the signing keys, when it frees them. A derivation of [PassphraseKEK] that has begun ends by itself, within
// seconds.
//
// # How a key is made
//
//  1. The leader makes the key, writes its own file, offers the key to the other servers, and proposes add.
//  2. Every server that lacks the key fetches it, from the leader first. It writes the file, reads it back,
//     and reports itself a holder.
//  3. When the key is due, the leader asks each server whether it holds the key now, and proposes activate
//     with the answers of a majority.
//  4. The FSM refuses the command unless it has recorded each of them as a holder, with the keystore that
//     answered. A wiped server has another keystore, so what was recorded of its old one no longer counts.
//
// # The packages behind this one
//
// CONTRIBUTING.md lists them, which may import which, and where a change goes.
package keyring
