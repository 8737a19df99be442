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

// BackupFormat is what Manifest.Format says in a backup that Backup makes today. A backup is a file of age
// (https://c2sp.org/age) that holds a tar archive:
//
//	manifest.json              a Manifest
//	keystore/<key id>.nks.json each of its keys, in its order, as InlineKEK wraps them
//	snapshot                   the raft snapshot: the keyring's part, then the host's to the end
//	signature                  64 bytes: see BackupSigner
//
// Those of "keyring backup 1", of earlier builds, have no signature, and are the same otherwise.
const BackupFormat = backup.Format

// Manifest says what is in a backup.
type Manifest struct {
	Format  string
	Cluster string // the ID that the keyring gave the cluster
	Created time.Time
	// Raft describes the snapshot. Its Index is the point of the log that the backup is of.
	Raft raft.SnapshotMeta
	// Keys are the keys of the snapshot, by ID. A prepublished one may be left out, for nothing is sealed
	// under it: it is if the server that made the backup did not have it.
	Keys []BackupKey
	// Missing are the other keys of the snapshot that are not in the backup. Backup makes none that misses
	// any; a damaged one may.
	Missing []KeyID `json:"-"`
	// Host is how many bytes of the snapshot are the host's own. They are its last.
	Host int64 `json:"-"`
	// SHA256 is that of the whole file, as it lies on a disk. age keeps others from reading it, and
	// does not say who wrote it: everybody who knows the recipients can. Keep it where they can't write.
	SHA256 [32]byte `json:"-"`
	// Signer is who has signed the backup: in VerifyBackup and Restore, a server that had the active key that
	// is in it. That it is the cluster's own key, the backup alone can't tell: compare it with the
	// Status.BackupSigner of the time. Zero in a backup of "keyring backup 1".
	Signer BackupSigner `json:"-"`
}

// BackupKey is a key in a backup.
type BackupKey struct {
	ID    KeyID
	State State           // at the time
	Check meta.CheckValue // tells the right material from any other
}

// newManifest returns the public form of a manifest.
func newManifest(m backup.Manifest) Manifest {
	public := Manifest{
		Format: m.Format, Cluster: m.Cluster, Created: m.Created, Raft: m.Raft, Missing: m.Missing, Host: m.Host,
		SHA256: m.SHA256, Signer: BackupSigner(m.Signer),
	}
	for _, k := range m.Keys {
		public.Keys = append(public.Keys, BackupKey(k))
	}
	return public
}

// backupSigner returns the signer of the backups that are made while this key is active. It is zero if the
// key is not here, or if there is no key.
func (k *Keyring) backupSigner(key *meta.Key) BackupSigner {
	if key == nil || !k.server.Store.InMemory(key.ID) {
		return BackupSigner{}
	}
	signer, err := k.signer.Of(key, func(id KeyID) (backup.Material, bool) {
		m, ok := k.server.Store.Copy(id)
		return backup.Material(m), ok
	})
	if err != nil {
		k.server.cfg.Logger.Error("signer of backups", "key", key.ID, "error", err)
	}
	return BackupSigner(signer)
}

// Backup is WriteBackup and ConfirmBackup in one, for a w that has made safe what it has taken when its Write returns
// nil. A file is not safe before it is synced and has its name, and w may only pass the bytes on: then call the two. If the
// note in raft alone fails, the Manifest comes with the error and the backup is good. Leader only.
func (k *Keyring) Backup(ctx context.Context, w io.Writer, to ...age.Recipient) (Manifest, error) {
	return led(ctx, k, func(ctx context.Context) (Manifest, error) {
		m, err := k.backups.Write(ctx, watchedWriter{w, k.hostCalls}, to)
		if err != nil {
			return Manifest{}, err
		}
		if err := k.backups.Confirm(ctx, m.SHA256); err != nil {
			return newManifest(m), fmt.Errorf("backup: it is complete, but not noted: %w", err)
		}
		return newManifest(m), nil
	})
}

// WriteBackup writes one file with everything to w: the metadata, the material of every key in it, and
// the host's own snapshot if it rides the same raft, so that what is in the one opens with what
// is in the other. It is encrypted to age recipients; the age tool opens it, and tar what is in
// it. Leader only.
//
// It has raft make a snapshot first. A key of that snapshot whose material is not here makes it fail
// with an error that matches ErrKeyMissing and names each, before anything is written; but not a
// prepublished one, which is left out and named in the log. After an error, as one of w's, what was written is of no use.
// A Write that is under way when ctx ends may return after WriteBackup has; there is none after it.
//
// For Status there is no backup until ConfirmBackup has said that it is safe.
func (k *Keyring) WriteBackup(ctx context.Context, w io.Writer, to ...age.Recipient) (Manifest, error) {
	return led(ctx, k, func(ctx context.Context) (Manifest, error) {
		m, err := k.backups.Write(ctx, watchedWriter{w, k.hostCalls}, to)
		return newManifest(m), err
	})
}

// ConfirmBackup says that a backup of WriteBackup is safe: its file is synced and has its name, or whoever stores it has said
// so. sha256 is its Manifest.SHA256. The backup is noted in raft then, for Status.LastBackup and
// Status.NoBackup, as one of what was there before the first key that it leaves out: until that one is held or removed,
// newer keys are counted as in no backup. A host that sends a backup to another machine lets that one ask for this call.
// Until then, and if that never comes, Status goes on as if the backup did not exist.
//
// It may be called again. If a newer backup is noted already, that stays. Only the server that has made the
// backup can confirm it, while it leads: it knows the last 16 since Open, and none from before raft restored a snapshot. The
// error for any other one matches ErrUnknownBackup; make another backup then. Leader only.
func (k *Keyring) ConfirmBackup(ctx context.Context, sha256 [32]byte) error {
	return k.doLed(ctx, func(ctx context.Context) error {
		if err := k.backups.Confirm(ctx, sha256); err != nil {
			return fmt.Errorf("confirm a backup: %w", err)
		}
		return nil
	})
}

// VerifyBackup is VerifyBackupContext with these identities alone.
func VerifyBackup(r io.Reader, with ...age.Identity) (Manifest, error) {
	return VerifyBackupContext(context.Background(), r, VerifyOptions{Identities: with})
}

// VerifyOptions says how a backup is opened, and what it has to be besides complete.
type VerifyOptions struct {
	// Identities open the backup. Required.
	Identities []age.Identity
	// Digest is the SHA-256 that the backup must have, and Signer who must have signed it: from a place that
	// its writer can't reach. Zero is not checked.
	Digest [32]byte
	Signer BackupSigner
	// Cluster is the ID of the cluster that it must be of: Manifest.Cluster. Empty is not checked.
	Cluster string
	// MaxBytes is how many bytes may be in the backup, unpacked. Zero means no bound but that of the file
	// itself: nothing in a backup unpacks to more bytes than it has there.
	MaxBytes int64
}

// VerifyBackupContext reads a backup to its end and says what is in it. It returns an error unless the backup can
// be restored and a server starts from it: nothing is altered, cut short or left over, it has the right material
// of every key of its snapshot that something may be sealed under, the public keys fit the material, the log
// index fits the keys, and the active key in it has signed it. If keys are missing, that is an error too, and
// Manifest.Missing names them. The host's part of the snapshot is known to be what was written, and is not looked
// into. Digest or Signer tell whether this cluster has made the backup, and not somebody else who knows the
// recipients.
//
// Memory does not grow with the size of the backup, but for a hundred bytes or so for each key. A
// Read that is under way when ctx ends may return after it.
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

// RestoreOptions says where to restore to, and from what.
type RestoreOptions struct {
	// Dir is the keystore directory to write: absent or empty, or with nothing in it but keys of
	// this very backup, as an interrupted Restore leaves it. Nothing in it is overwritten.
	Dir string
	// KEKs are this server's: the keys are wrapped under all of them. Required.
	KEKs []KEK
	// Identities open the backup. Required.
	Identities []age.Identity
	// Snapshot gets the raft snapshot, which Manifest.Raft describes, for raft's Restore. What
	// it got is void if Restore returns an error. Nil throws it away.
	Snapshot io.Writer
	// OpenSnapshot returns what gets the raft snapshot in place of Snapshot, for a host that writes it into
	// raft's own snapshot store. Restore calls it once, when everything in the backup that comes before the
	// host's part of the snapshot is good. By then Manifest.Raft describes what will be written, and
	// Manifest.Host is known. Restore closes nothing.
	OpenSnapshot func(Manifest) (io.Writer, error)
	// Snapshots is raft's own snapshot store, in place of Snapshot and OpenSnapshot, for a host with a raft of its own: raft
	// then starts on it, with an empty log, as a cluster of which Server is the only member. It must be empty. The snapshot is
	// complete in it when the keys are in Dir: a crash before that leaves none. Nil means that there is none.
	Snapshots raft.SnapshotStore
	// Server is this server, as raft is to have it, with a vote: ID and Address. It is used with Snapshots alone.
	Server raft.Server
	// Confirm is called when all of the backup is good, before anything is written to Dir. Its error ends
	// Restore. Nil confirms.
	Confirm func(context.Context, Manifest) error
	// Digest is the SHA-256 that the backup must have, and Signer who must have signed it: from a place that its
	// writer can't reach. One of them is required, or Unauthenticated.
	Digest [32]byte
	Signer BackupSigner
	// Unauthenticated takes a backup of which nothing tells who wrote it. Everybody who knows the recipients can
	// make one, and can open all that is sealed with its keys from then on.
	Unauthenticated bool
	// Cluster is the ID of the cluster that it must be of: Manifest.Cluster. Empty is not checked.
	Cluster string
	// MaxBytes is how many bytes may be in the backup, unpacked. Zero means no bound but that of the
	// file itself.
	MaxBytes int64
	// DataOnly is for drills: what is restored is a new cluster, with an ID of its own, in which the keys of the
	// backup open data and no more. It makes a fresh active key. So it signs no token that the
	// cluster of the backup takes, takes none of its tokens, and no server can join the one with a token
	// of the other's. Keys that have sealed nothing are left out. Give it another node.Config.Cluster and CA.
	DataOnly bool
	// Force is for node.Restore: it does not ask whether other servers of the cluster answer.
	Force bool
	// Logger gets what the keystore logs. Nil logs nothing.
	Logger hclog.Logger
}

// Check says all that is wrong with the options, or returns nil. Restore asks it before it does anything else. It reads
// nothing and asks no KEK: a host calls it before it stops or asks other servers.
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
	w.unless(o.Snapshots == nil || o.Server.ID != "" && o.Server.Address != "", "Snapshots is set, and Server lacks its ID or its Address")
	w.unless(o.Digest != [32]byte{} || o.Signer != BackupSigner{} || o.Unauthenticated,
		"nothing tells who wrote the backup: set Digest, Signer or Unauthenticated")
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

// Restore reads a backup and writes its keys into a keystore directory under this server's KEKs. It
// writes nothing, not even the directory, before it has read all of the backup and found it good. After an
// error, or a crash, the same Restore finishes what is in Dir. The other servers need no backup: they get the
// keys from this one. See node.Restore for a Node.
//
// No other server of the cluster may run: there would be two of it. A host with a raft of its own sees
// to that.
//
// Until it has found the backup good it has the keys in memory, a few kilobytes each. A Read
// or Write that is under way when ctx ends may return after Restore has; there is none after it.
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

// openSnapshot returns what gets the snapshot, or nil.
func (o RestoreOptions) openSnapshot(m backup.Manifest) (io.Writer, error) {
	if o.OpenSnapshot != nil {
		return o.OpenSnapshot(newManifest(m))
	}
	return o.Snapshot, nil
}

// convert returns the ring that takes the place of the backup's.
func (o RestoreOptions) convert(r *meta.Ring) *meta.Ring {
	if !o.DataOnly {
		return r.Restored()
	}
	var cluster meta.ClusterID
	rand.Read(cluster[:]) // never fails
	return r.DataOnly(cluster, time.Now().UTC().Round(0))
}

// write writes the keys that are not in the directory yet. They are the caller's to wipe.
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

// checkDir looks at the directory before anything is read, and makes nothing.
func (o RestoreOptions) checkDir(ctx context.Context) error {
	if simulated.Disk(ctx) != nil {
		return nil
	}
	return keystore.CheckDir(o.Dir)
}
