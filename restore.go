package keyring

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"example.com/keyring/internal/backup"
	"example.com/keyring/internal/durable"
	"example.com/keyring/internal/gate"
	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/keystore"
	"example.com/keyring/internal/meta"
	"filippo.io/age"
	"github.com/hashicorp/go-hclog"
)

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
	// Confirm is called when all of the backup is good, before anything is written to Dir. Its error ends
	// Restore. Nil confirms.
	Confirm func(context.Context, Manifest) error
	// Digest is the SHA-256 that the backup must have, and Signer who must have signed it: from a place that its
	// writer can't reach. One of them is required, or Unauthenticated.
	Digest [32]byte
	Signer BackupSigner
	// Unauthenticated takes a backup that nothing is known of: whoever knows the recipients can make one,
	// and has all that is sealed with its keys from then on.
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

	fs durable.FS // in place of Dir, for tests
}

// check says what is wrong with the options, and whether the KEKs work, before anything is read or written.
func (o RestoreOptions) check(ctx context.Context) error {
	var w wrongs
	w.unless(o.Dir != "", "Dir is empty")
	w.unless(len(o.Identities) > 0, "Identities is empty")
	w.unless(o.MaxBytes >= 0, "MaxBytes %d is negative", o.MaxBytes)
	w.unless(o.Snapshot == nil || o.OpenSnapshot == nil, "both Snapshot and OpenSnapshot are set")
	w.unless(o.Digest != [32]byte{} || o.Signer != BackupSigner{} || o.Unauthenticated,
		"nothing tells who wrote the backup: set Digest, Signer or Unauthenticated")
	if err := errors.Join(append(w, Config{KEKs: o.KEKs}.checkKEKs()...)...); err != nil {
		return err
	}
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
	if err := o.check(ctx); err != nil {
		return Manifest{}, err
	}
	if err := o.checkDir(); err != nil {
		return Manifest{}, err
	}
	var keys []keystore.Key
	defer func() {
		for _, k := range keys {
			k.Secret.Wipe()
		}
	}()
	m, ring, err := readBackup(ctx, r, o.verify(), backup.Receiver{
		Key: func(m backup.Material) {
			keys = append(keys, keystore.Key{ID: m.ID, Algorithm: m.Algorithm, Check: m.Check, Created: m.Created, Secret: m.Secret})
		},
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
	return m, o.write(ctx, slices.DeleteFunc(slices.Clone(keys), func(k keystore.Key) bool { return ring.Key(k.ID) == nil }))
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
	fsys := o.fs
	if fsys == nil {
		if fsys, err = durable.OpenDir(o.Dir); err != nil {
			return err
		}
	}
	if o.Logger == nil {
		o.Logger = hclog.NewNullLogger()
	}
	return keystore.Restore(ctx, fsys, kek.NewSet(o.KEKs, nil), o.Logger, keys)
}

// checkDir looks at the directory before anything is read, and makes nothing.
func (o RestoreOptions) checkDir() error {
	if o.fs != nil {
		return nil
	}
	return keystore.CheckDir(o.Dir)
}
