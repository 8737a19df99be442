package keyring

// WriteBackup, VerifyBackup and Restore: the public face of internal/backup.

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"example.com/keyring/internal/backup"
	"example.com/keyring/internal/gate"
	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/keystore"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/simulated"
	"filippo.io/age"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// BackupFormat is the Manifest.Format of the backups that Backup makes today. A backup is an age file
// (https://c2sp.org/age) that holds a tar archive:
//
//	manifest.json              a Manifest
//	keystore/<key id>.nks.json each key of the manifest, in the same order, wrapped by InlineKEK
//	snapshot                   the raft snapshot: the keyring's part, then the host's part to the end
//	signature                  64 bytes: see BackupSigner
//
// Backups of earlier builds have the format "keyring backup 1". They have no signature, and are otherwise the
// same.
const BackupFormat = "keyring backup 2"

// Manifest describes a backup.
type Manifest struct {
	Format  string
	Cluster string // the ID that the keyring gave to the cluster
	Created time.Time
	// Raft describes the snapshot. Its Index is the log index at which the backup was made.
	Raft raft.SnapshotMeta
	// Keys are the keys of the snapshot, ordered by ID. A prepublished key is left out if the server that
	// made the backup did not have it: no data is encrypted under it.
	Keys []BackupKey
	// Missing are the keys of the snapshot that the backup should contain and does not. Backup never makes
	// such a backup; a damaged one may be like this.
	Missing []KeyID `json:"-"`
	// Host is the number of bytes at the end of the snapshot that belong to the host.
	Host int64 `json:"-"`
	// SHA256 is the digest of the whole encrypted file. age keeps others from reading the file, but does not
	// prove who wrote it: anyone who knows the recipients can write one. Keep the digest where they can't
	// write.
	SHA256 [32]byte `json:"-"`
	// Signer is the signer of the backup. VerifyBackup and Restore check that the signer had the active key
	// that is in the backup. The backup alone can't prove that this key is your cluster's: compare Signer
	// with the Status.BackupSigner of that time. It is zero in a backup of "keyring backup 1".
	Signer BackupSigner `json:"-"`
}

// BackupKey is a key in a backup.
type BackupKey struct {
	ID    KeyID
	State State      // when the backup was made
	Check CheckValue // distinguishes the right material from any other
}

// CheckValue distinguishes the right material of a key from any other, and reveals nothing about it. Its
// text, in JSON too, is 64 hexadecimal digits.
type CheckValue [32]byte

// MarshalText returns the text, in lower case.
func (c CheckValue) MarshalText() ([]byte, error) { return meta.CheckValue(c).MarshalText() }

// UnmarshalText reads the text.
func (c *CheckValue) UnmarshalText(text []byte) error {
	return (*meta.CheckValue)(c).UnmarshalText(text)
}

// newManifest returns the public form of a manifest.
func newManifest(m backup.Manifest) Manifest {
	public := Manifest{
		Format: m.Format, Cluster: m.Cluster, Created: m.Created, Raft: m.Raft, Missing: idsAs[KeyID](m.Missing), Host: m.Host,
		SHA256: m.SHA256, Signer: BackupSigner(m.Signer),
	}
	for _, k := range m.Keys {
		public.Keys = append(public.Keys, BackupKey{KeyID(k.ID), State(k.State), CheckValue(k.Check)})
	}
	return public
}

// backupSigner returns the signer of backups that are made while this key is active. It is zero if this
// server lacks the key, or if there is no key.
func (k *Keyring) backupSigner(key *meta.Key) BackupSigner {
	if key == nil || !k.server.Store.InMemory(key.ID) {
		return BackupSigner{}
	}
	signer, err := k.signer.Of(key, func(id meta.KeyID) (backup.Material, bool) {
		m, ok := k.server.Store.Copy(id)
		return backup.Material(m), ok
	})
	if err != nil {
		k.server.cfg.Logger.Error("could not derive the signer of backups", "key", key.ID, "error", err)
	}
	return BackupSigner(signer)
}

// Backup calls WriteBackup, then ConfirmBackup. Use it only if what w has accepted is safe once its Write has
// returned nil. A file is not: it must be synced and renamed first. Nor is a w that only forwards the bytes.
// Then make the two calls yourself. If only the note in raft fails, Backup returns both the Manifest and an
// error, and the backup is good. Leader only.
func (k *Keyring) Backup(ctx context.Context, w io.Writer, to ...age.Recipient) (Manifest, error) {
	return led(ctx, k, func(ctx context.Context) (Manifest, error) {
		m, err := k.backups.Write(ctx, watchedWriter{w, k.hostCalls}, to)
		if err != nil {
			return Manifest{}, err
		}
		if err := k.backups.Confirm(ctx, m.SHA256); err != nil {
			return newManifest(m), fmt.Errorf("backup: it is complete, but raft has not noted it: %w", err)
		}
		return newManifest(m), nil
	})
}

// WriteBackup writes one file with everything to w: the metadata and the material of every key, and the
// host's own snapshot if the host shares the raft through Mux. So the keys in a backup always fit the data in
// it. The file is encrypted to age recipients; the age tool decrypts it, and tar unpacks the result. Leader
// only.
//
// First raft makes a snapshot. If this server lacks the material of a key in it, WriteBackup writes nothing
// and returns an error that names each such key and matches ErrKeyMissing. A prepublished key is no error: it
// is left out, and the log names it. After an error, of w or any other, discard the output. A Write that is
// in progress when ctx ends may return after WriteBackup has; no Write begins after that.
//
// Status ignores the backup until ConfirmBackup has been called.
func (k *Keyring) WriteBackup(ctx context.Context, w io.Writer, to ...age.Recipient) (Manifest, error) {
	return led(ctx, k, func(ctx context.Context) (Manifest, error) {
		m, err := k.backups.Write(ctx, watchedWriter{w, k.hostCalls}, to)
		return newManifest(m), err
	})
}

// ConfirmBackup says that a backup of WriteBackup is safe: its file is synced and renamed, or the store has
// accepted it. sha256 is its Manifest.SHA256. Raft then notes the backup for Status.LastBackup and
// Status.NoBackup. If the backup leaves out a prepublished key, newer keys count as not backed up until that
// key is held or removed. A host that sends its backups to another machine lets that machine ask for this
// call. Without the call, Status goes on as if the backup did not exist.
//
// The call may be repeated. If a newer backup is noted already, that one stays. Only the server that made the
// backup can confirm it, and only while it leads. It knows its last 16 backups since Open, and forgets them
// when raft restores a snapshot. The error for any other backup matches ErrUnknownBackup; then make another
// backup. Leader only.
func (k *Keyring) ConfirmBackup(ctx context.Context, sha256 [32]byte) error {
	return k.doLed(ctx, func(ctx context.Context) error {
		if err := k.backups.Confirm(ctx, sha256); err != nil {
			return fmt.Errorf("confirm a backup: %w", err)
		}
		return nil
	})
}

// VerifyBackup is VerifyBackupContext with these identities and no other options.
func VerifyBackup(r io.Reader, with ...age.Identity) (Manifest, error) {
	return VerifyBackupContext(context.Background(), r, VerifyOptions{Identities: with})
}

// VerifyOptions says how VerifyBackupContext opens a backup, and what it checks besides completeness.
type VerifyOptions struct {
	// Identities decrypt the backup. Required.
	Identities []age.Identity
	// Digest is the SHA-256 that the backup must have, and Signer is the signer that it must have. Take them
	// from a place that the writer of the backup can't change. Zero is not checked.
	Digest [32]byte
	Signer BackupSigner
	// Cluster is the ID that Manifest.Cluster must have. Empty is not checked.
	Cluster string
	// MaxBytes limits the unpacked size of the backup. Zero means no limit; a backup has no compression, so
	// it never unpacks to more bytes than the file has.
	MaxBytes int64
}

// VerifyBackupContext reads a backup to its end and describes it. It returns an error unless the backup can
// be restored and a server can start from it. It checks that:
//
//   - nothing is altered, cut short or left over;
//   - it has the right material of every key of its snapshot under which data may be encrypted;
//   - the public keys fit the material;
//   - the log index fits the keys;
//   - the active key in it has signed it.
//
// If keys are missing, that is an error, and Manifest.Missing names them. The host's part of the snapshot is
// proven to be unchanged; its contents are not checked. Only Digest or Signer prove that this cluster made
// the backup, and not somebody else who knows the recipients.
//
// Memory does not grow with the size of the backup, except for about a hundred bytes per key. A Read that is
// in progress when ctx ends may return after VerifyBackupContext has.
func VerifyBackupContext(ctx context.Context, r io.Reader, o VerifyOptions) (Manifest, error) {
	m, err := gate.Await(ctx, func() (Manifest, error) {
		m, _, err := readBackup(ctx, r, o, backup.Receiver{})
		return m, err
	})
	if err != nil {
		return m, fmt.Errorf("backup: %w", err)
	}
	return m, nil
}

func (o VerifyOptions) reading() backup.Options {
	return backup.Options{
		Identities: o.Identities, Digest: o.Digest, Signer: backup.Signer(o.Signer), Cluster: o.Cluster, MaxBytes: o.MaxBytes,
	}
}

// readBackup is backup.Read.
func readBackup(ctx context.Context, r io.Reader, o VerifyOptions, to backup.Receiver) (Manifest, *meta.Ring, error) {
	m, ring, err := backup.Read(ctx, r, o.reading(), to)
	if errors.Is(err, backup.ErrMissing) {
		err = fmt.Errorf("%w: %w", ErrKeyMissing, err)
	}
	return newManifest(m), ring, err
}

// RestoreOptions says what Restore reads, and where it writes.
type RestoreOptions struct {
	// Dir is the keystore directory to write. It must be absent or empty, or contain only keys of this very
	// backup, as after an interrupted Restore. Restore overwrites nothing in it.
	Dir string
	// KEKs are the KEKs of this server. Each of them wraps every key. Required.
	KEKs []KEK
	// Identities decrypt the backup. Required.
	Identities []age.Identity
	// Snapshot receives the raft snapshot, for raft's Restore; Manifest.Raft describes it. Discard it if
	// Restore returns an error. Nil throws the snapshot away.
	Snapshot io.Writer
	// OpenSnapshot returns the writer that receives the raft snapshot, in place of Snapshot, for a host that
	// writes into raft's own snapshot store. Restore calls it once, when everything in the backup up to the
	// host's part of the snapshot is good. Manifest.Raft and Manifest.Host are known by then. Restore does
	// not close the writer.
	OpenSnapshot func(Manifest) (io.Writer, error)
	// Snapshots is raft's own snapshot store, in place of Snapshot and OpenSnapshot, for a host with a raft
	// of its own. That raft then starts on it with an empty log, as a cluster whose only member is Server.
	// The store must be empty. Restore completes the snapshot in it after the keys are in Dir; a crash before
	// that leaves no snapshot. Nil means that there is no such store.
	Snapshots raft.SnapshotStore
	// Server is the ID and the Address of this server in raft; it gets a vote. Only Snapshots uses it.
	Server raft.Server
	// Confirm is called when the whole backup is good, before Restore writes anything to Dir. Its error ends
	// Restore. Nil confirms.
	Confirm func(context.Context, Manifest) error
	// Digest is the SHA-256 that the backup must have, and Signer is the signer that it must have. Take them
	// from a place that the writer of the backup can't change. Digest, Signer or Unauthenticated is required.
	Digest [32]byte
	Signer BackupSigner
	// Unauthenticated accepts a backup whose writer nothing proves. Anyone who knows the recipients can make
	// such a backup, and can decrypt everything that is later encrypted with its keys.
	Unauthenticated bool
	// Cluster is the ID that Manifest.Cluster must have. Empty is not checked.
	Cluster string
	// MaxBytes limits the unpacked size of the backup. Zero means the size of the file.
	MaxBytes int64
	// DataOnly is for drills. The result is a new cluster with a new ID and a new active key, in which the
	// keys of the backup only decrypt data. So the drill and the cluster of the backup accept neither tokens
	// nor join tokens of each other. Keys that have encrypted nothing are left out. Give the drill another
	// node.Config.Cluster and another CA.
	DataOnly bool
	// Force is for node.Restore, which then does not ask whether other servers of the cluster answer.
	Force bool
	// Logger receives the log lines of the keystore. Nil logs nothing.
	Logger hclog.Logger
}

// Check returns all that is wrong with the options, or nil. Restore calls it first. It reads nothing and asks
// no KEK, so a host can call it before it stops or asks other servers.
func (o RestoreOptions) Check() error {
	var w wrongs
	w.unless(o.Dir != "", "Dir is empty")
	places := 0
	for _, set := range []bool{o.Snapshot != nil, o.OpenSnapshot != nil, o.Snapshots != nil} {
		if set {
			places++
		}
	}
	w.unless(places <= 1, "more than one of Snapshot, OpenSnapshot and Snapshots is set")
	w.unless(o.Snapshots == nil || o.Server.ID != "" && o.Server.Address != "", "Snapshots is set, and Server has no ID or no Address")
	w.unless(o.Digest != [32]byte{} || o.Signer != BackupSigner{} || o.Unauthenticated,
		"nothing proves who wrote the backup: set Digest, Signer or Unauthenticated")
	w = append(w, o.verify().reading().Check())
	return errors.Join(append(w, Config{KEKs: o.KEKs}.checkKEKs()...)...)
}

// probeKEKs says whether the KEKs work.
func (o RestoreOptions) probeKEKs(ctx context.Context) error {
	keks := kek.NewSet(o.KEKs, nil)
	if !keks.Probe(ctx) {
		return errors.New("none of the KEKs can unwrap")
	}
	return keks.WrappingDown()
}

func (o RestoreOptions) verify() VerifyOptions {
	return VerifyOptions{Identities: o.Identities, Digest: o.Digest, Signer: o.Signer, Cluster: o.Cluster, MaxBytes: o.MaxBytes}
}

// Restore reads a backup and writes its keys into a keystore directory under this server's KEKs. It writes
// nothing, not even the directory, before it has read the whole backup and found it good. After an error or a
// crash, run the same Restore again: it completes Dir. The other servers need no backup: this one gives them
// the keys. For a Node use node.Restore.
//
// No other server of the cluster may run, or there would be two clusters with the same data. A host with a
// raft of its own must make sure of that.
//
// Until the backup is found good, its keys are in memory, a few kilobytes each. A Read or Write that is in
// progress when ctx ends may return after Restore has; none begins after that.
func Restore(ctx context.Context, r io.Reader, o RestoreOptions) (Manifest, error) {
	m, err := gate.Await(ctx, func() (Manifest, error) { return restore(ctx, r, o) })
	if err != nil {
		return m, fmt.Errorf("restore: %w", err)
	}
	return m, nil
}

func restore(ctx context.Context, r io.Reader, o RestoreOptions) (m Manifest, err error) {
	if err := o.Check(); err != nil {
		return Manifest{}, err
	}
	if err := o.probeKEKs(ctx); err != nil {
		return Manifest{}, err
	}
	if err := o.checkDir(ctx); err != nil {
		return Manifest{}, err
	}
	if o.Snapshots != nil {
		into := raftSnapshot{store: o.Snapshots, server: o.Server}
		if err := into.empty(); err != nil {
			return Manifest{}, err
		}
		o.OpenSnapshot = into.open
		defer func() { err = into.end(err) }()
	}
	var keys []keystore.Key
	defer func() {
		for _, k := range keys {
			k.Secret.Wipe()
		}
	}()
	m, ring, err := readBackup(ctx, r, o.verify(), backup.Receiver{
		Key:      func(m backup.Material) { keys = append(keys, keystore.Key(m)) },
		Convert:  o.convert,
		Snapshot: o.openSnapshot,
	})
	if err != nil {
		return m, err
	}
	if o.Confirm != nil {
		if err := o.Confirm(ctx, m); err != nil {
			return m, err
		}
	}
	inRing := slices.DeleteFunc(slices.Clone(keys), func(k keystore.Key) bool { return ring.Key(k.ID) == nil })
	return m, o.write(ctx, inRing) // DataOnly leaves some out
}

// openSnapshot returns the writer for the snapshot, or nil.
func (o RestoreOptions) openSnapshot(m backup.Manifest) (io.Writer, error) {
	if o.OpenSnapshot != nil {
		return o.OpenSnapshot(newManifest(m))
	}
	return o.Snapshot, nil
}

// convert returns the ring to restore in place of the backup's.
func (o RestoreOptions) convert(r *meta.Ring) *meta.Ring {
	if !o.DataOnly {
		return r.Restored()
	}
	var cluster meta.ClusterID
	rand.Read(cluster[:]) // never fails
	return r.DataOnly(cluster, time.Now().UTC().Round(0))
}

// write writes the keys that the directory lacks. The caller wipes them.
func (o RestoreOptions) write(ctx context.Context, keys []keystore.Key) (err error) {
	fsys, err := simulated.OpenDir(ctx, o.Dir)
	if err != nil {
		return err
	}
	if o.Logger == nil {
		o.Logger = hclog.NewNullLogger()
	}
	return keystore.Restore(ctx, fsys, kek.NewSet(o.KEKs, nil), o.Logger, keys)
}

// checkDir checks the directory before anything is read, and creates nothing.
func (o RestoreOptions) checkDir(ctx context.Context) error {
	if simulated.Disk(ctx) != nil {
		return nil
	}
	return keystore.CheckDir(o.Dir)
}
