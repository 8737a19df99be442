package backup_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"example.com/keyring/internal/backup"
	"example.com/keyring/internal/backup/backuptest"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
	"filippo.io/age"
	"github.com/hashicorp/raft"
)

// body is a snapshot that raft has opened.
type body struct {
	io.Reader
	closed int
}

func (b *body) Close() error { b.closed++; return nil }

// small returns an archive of a snapshot with a host's part, and the keys that can be added to it.
func small(t *testing.T, host string, size int) (a *backup.Archive, from *body, part []byte, keys []backup.Material) {
	t.Helper()
	file, _, identity := backuptest.Small(t)
	part = backuptest.TakeApart(t, file, identity)[3].Content
	_, _, err := backup.Read(t.Context(), bytes.NewReader(file), backup.Options{Identities: []age.Identity{identity}}, backup.Receiver{
		Key: func(m backup.Material) { keys = append(keys, m) },
	})
	if err != nil {
		t.Fatal(err)
	}
	from = &body{Reader: io.MultiReader(bytes.NewReader(part), strings.NewReader(host))}
	a, err = backup.New(raft.SnapshotMeta{
		Version: 1, Index: 9, Term: 2, Size: int64(size + len(part)),
		Configuration: raft.Configuration{Servers: []raft.Server{{ID: "s1", Address: "s1"}}},
	}, from, meta.This, time.Now().UTC().Round(0))
	if err != nil {
		t.Fatal(err)
	}
	return a, from, part, keys
}

// TestReadGivesWhatWasWritten: the keys, and the snapshot with the host's part of it.
func TestReadGivesWhatWasWritten(t *testing.T) {
	const host = "what the host has"
	a, from, part, keys := small(t, host, len(host))
	var want []string
	for i, k := range a.Ring.Keys {
		want = append(want, fmt.Sprintf("%+v %x", k.New(), keys[i].Secret.Root()))
		a.Add(k, keys[i])
	}
	identity := backuptest.Identity(t)
	var out, snapshot bytes.Buffer
	m, err := a.Write(t.Context(), &out, identity.Recipient())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	read, ring, err := backup.Read(t.Context(), &out, backup.Options{
		Identities: []age.Identity{identity}, Digest: m.SHA256, Signer: m.Signer, Cluster: m.Cluster,
	}, backup.Receiver{
		Key: func(k backup.Material) {
			public, err := k.Secret.Public(k.Algorithm)
			if err != nil {
				t.Error(err)
			}
			got = append(got, fmt.Sprintf("%+v %x", meta.NewKey{ID: k.ID, Algorithm: k.Algorithm, Public: public, Check: k.Check, Created: k.Created}, k.Secret.Root()))
		},
		Snapshot: func(m backup.Manifest) (io.Writer, error) {
			if m.Host != int64(len(host)) || len(got) != len(want) {
				t.Errorf("the snapshot comes after %d keys, with %d bytes of the host's", len(got), m.Host)
			}
			return &snapshot, nil
		},
	})
	if err != nil || fmt.Sprint(read) != fmt.Sprint(m) || len(ring.Keys) != len(want) {
		t.Errorf("%+v, %v; want %+v", read, err, m)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("keys\n%s\nwant\n%s", got, want)
	}
	if snapshot.String() != string(part)+host {
		t.Errorf("a snapshot of %d bytes, want %d", snapshot.Len(), len(part)+len(host))
	}
	if err := a.Close(); err != nil || from.closed != 1 {
		t.Errorf("closed %d times, %v", from.closed, err)
	}
}

// TestNewRefusesASnapshotThatIsNotTheKeyrings, and closes it.
func TestNewRefusesASnapshotThatIsNotTheKeyrings(t *testing.T) {
	_, _, part, _ := small(t, "", 0)
	for name, b := range map[string][]byte{"nothing": nil, "the host's": []byte("the host's"), "cut short": part[:len(part)-1]} {
		from := &body{Reader: bytes.NewReader(b)}
		if _, err := backup.New(raft.SnapshotMeta{}, from, meta.This, time.Now().UTC().Round(0)); !errors.Is(err, nks.ErrCorrupt) || from.closed != 1 {
			t.Errorf("%s: %v, closed %d times", name, err, from.closed)
		}
	}
}

// TestNewRefusesASnapshotBehindItsRing: nobody could restore the backup.
func TestNewRefusesASnapshotBehindItsRing(t *testing.T) {
	a, _, part, _ := small(t, "", 0)
	last := a.Ring.LastIndex()
	for index, refused := range map[uint64]bool{last - 1: true, last: false} {
		_, err := backup.New(raft.SnapshotMeta{Index: index}, io.NopCloser(bytes.NewReader(part)), meta.This, time.Now().UTC().Round(0))
		if (err != nil) != refused || refused && !strings.Contains(err.Error(), "under a lower index") {
			t.Errorf("of index %d, with what was made at %d: %v", index, last, err)
		}
	}
}

// TestWriteFails where it could not be read, and where it can't be written.
func TestWriteFails(t *testing.T) {
	recipient := backuptest.Identity(t).Recipient()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	broken := errors.New("disk full")
	add := func(a *backup.Archive, keys []backup.Material) {
		for i, m := range keys {
			a.Add(a.Ring.Keys[i], m)
		}
	}
	a, _, _, keys := small(t, "", 0)
	add(a, keys[:1])
	if _, err := a.Write(t.Context(), io.Discard, recipient); err == nil || !strings.Contains(err.Error(), "the active key is not in the backup") {
		t.Errorf("without the active key: %v", err)
	}
	a, _, _, keys = small(t, "the host's", 11)
	add(a, keys)
	if _, err := a.Write(t.Context(), io.Discard, recipient); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("of a snapshot that is cut short: %v", err)
	}
	a, _, _, keys = small(t, "", 0)
	add(a, keys)
	if _, err := a.Write(ended, io.Discard, recipient); !errors.Is(err, context.Canceled) {
		t.Errorf("after its context has ended: %v", err)
	}
	a, _, _, keys = small(t, "", 0)
	add(a, keys)
	if _, err := a.Write(t.Context(), failingWriter{broken}, recipient); !errors.Is(err, broken) {
		t.Errorf("to a full disk: %v", err)
	}
	if err := backup.CheckRecipients(nil); err == nil {
		t.Error("a backup for nobody")
	}
}

type failingWriter struct{ err error }

func (w failingWriter) Write([]byte) (int, error) { return 0, w.err }
