// Package backuptest makes backups for tests, and takes them apart.
package backuptest

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"example.com/keyring/internal/backup"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
	"filippo.io/age"
	"github.com/hashicorp/raft"
)

// Identity returns a new identity of age.
func Identity(t testing.TB) *age.X25519Identity {
	t.Helper()
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return identity
}

// Small returns a backup of a cluster of one server with two keys, of a few kilobytes. Each is of another
// cluster.
func Small(t testing.TB) (file []byte, m backup.Manifest, identity *age.X25519Identity) {
	t.Helper()
	var secrets []*nks.Material
	for range 2 {
		secret, err := nks.Generate("EdDSA")
		if err != nil {
			t.Fatal(err)
		}
		secrets = append(secrets, secret)
	}
	return Of(t, "EdDSA", secrets...)
}

// Of returns a backup of a cluster of one server with keys of this material, which it wipes. The last one is the
// active key.
func Of(t testing.TB, algorithm string, secrets ...*nks.Material) (file []byte, m backup.Manifest, identity *age.X25519Identity) {
	t.Helper()
	snapshot := encode(t, ringOf(t, algorithm, secrets))
	a, err := backup.New(raft.SnapshotMeta{
		Version: raft.SnapshotVersionMax, ID: "2-9-1", Index: 9, Term: 2, Size: int64(len(snapshot)),
		Configuration:      raft.Configuration{Servers: []raft.Server{{ID: "s1", Address: "s1"}}},
		ConfigurationIndex: 1,
	}, io.NopCloser(bytes.NewReader(snapshot)), meta.This, at(9))
	if err != nil {
		t.Fatal(err)
	}
	for i, k := range a.Ring.Keys {
		a.Add(k, backup.Material{ID: k.ID, Algorithm: k.Algorithm, Check: k.Check, Created: k.Created, Secret: secrets[i]})
	}
	identity = Identity(t)
	var out bytes.Buffer
	m, err = a.Write(context.Background(), &out, identity.Recipient())
	if err := errors.Join(err, a.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes(), m, identity
}

func at(hour int) time.Time { return time.Date(2026, 1, 2, hour, 0, 0, 0, time.UTC) }

// ringOf is a ring of another cluster with keys of this material.
func ringOf(t testing.TB, algorithm string, secrets []*nks.Material) *meta.Ring {
	t.Helper()
	ring := &meta.Ring{Servers: []meta.Server{{ID: "s1", Keystore: meta.KeystoreID{1}}}}
	rand.Read(ring.Cluster[:]) // never fails
	for i, secret := range secrets {
		public, err := secret.Public(algorithm)
		if err != nil {
			t.Fatal(err)
		}
		var id meta.KeyID
		rand.Read(id[:])
		binary.BigEndian.PutUint32(id[:], uint32(i+1))
		k := &meta.Key{
			ID: id, State: meta.StateInactive, Algorithm: algorithm, Public: public, Check: secret.Check(id, algorithm),
			Created: at(1), Activated: at(2), Retired: at(3), CreateIndex: 3, ModifyIndex: 8, Holders: []string{"s1"},
		}
		if i == len(secrets)-1 {
			k.State, k.Retired = meta.StateActive, time.Time{}
		}
		ring.Keys = append(ring.Keys, k)
	}
	return ring
}

// Part is a file of a backup.
type Part struct {
	tar.Header
	Content []byte
}

// TakeApart returns the files of a backup.
func TakeApart(t testing.TB, file []byte, identity age.Identity) (parts []Part) {
	t.Helper()
	plain, err := age.Decrypt(bytes.NewReader(file), identity)
	if err != nil {
		t.Fatal(err)
	}
	for archive := tar.NewReader(plain); ; {
		h, err := archive.Next()
		if err == io.EOF {
			return parts
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		parts = append(parts, Part{*h, content})
	}
}

// Archive returns the tar archive of these files.
func Archive(parts ...Part) ([]byte, error) {
	var out bytes.Buffer
	archive := tar.NewWriter(&out)
	for _, p := range parts {
		p.Size = int64(len(p.Content))
		if err := archive.WriteHeader(&p.Header); err != nil {
			return nil, fmt.Errorf("%.100q: %w", p.Name, err)
		}
		if _, err := archive.Write(p.Content); err != nil {
			return nil, err
		}
	}
	err := archive.Close()
	return out.Bytes(), err
}

// Encrypt returns the backup that has this plaintext: everybody who knows the recipient can write it.
func Encrypt(t testing.TB, plain []byte, to age.Recipient) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := age.Encrypt(&out, to)
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.Write(plain)
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// Assemble returns the backup that has these files, and nothing else.
func Assemble(t testing.TB, parts []Part, to age.Recipient) []byte {
	t.Helper()
	plain, err := Archive(parts...)
	if err != nil {
		t.Fatal(err)
	}
	return Encrypt(t, plain, to)
}

// Forgery is what somebody who knows the recipients can put into a backup: anything, but no signature.
type Forgery struct {
	Manifest backup.Manifest
	Ring     *meta.Ring // of the snapshot, which has no part of a host's
}

// Forge returns a backup of the format that is not signed, with a change.
func Forge(t testing.TB, file []byte, identity *age.X25519Identity, change func(*Forgery)) []byte {
	t.Helper()
	parts := TakeApart(t, file, identity)
	parts = parts[:len(parts)-1] // the signature
	manifest, snapshot := &parts[0], &parts[len(parts)-1]
	s, err := meta.This.ReadSnapshot(bytes.NewReader(snapshot.Content))
	if err != nil {
		t.Fatal(err)
	}
	f := &Forgery{Ring: s.Ring}
	if err := json.Unmarshal(manifest.Content, &f.Manifest); err != nil {
		t.Fatal(err)
	}
	f.Manifest.Format = "keyring backup 1"
	before := encode(t, f.Ring)
	change(f)
	if now := encode(t, f.Ring); !bytes.Equal(now, before) {
		snapshot.Content = now
		f.Manifest.Raft.Size = int64(len(now))
	}
	if manifest.Content, err = json.Marshal(f.Manifest); err != nil {
		t.Fatal(err)
	}
	return Assemble(t, parts, identity.Recipient())
}

func encode(t testing.TB, r *meta.Ring) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := meta.This.WriteSnapshot(&out, r); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// EndsAfter is a reader of some bytes at a time, during which a context ends.
type EndsAfter struct {
	io.Reader
	Left int // reads until it ends
	End  context.CancelFunc
}

// Read implements io.Reader.
func (e *EndsAfter) Read(b []byte) (int, error) {
	if e.Left--; e.Left == 0 {
		e.End()
	}
	return e.Reader.Read(b[:min(len(b), 100)])
}
