package backup_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"example.com/keyring/internal/backup"
	"example.com/keyring/internal/backup/backuptest"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
	"filippo.io/age"
)

// read reads a backup to its end, and hands nothing on.
func read(file []byte, identity age.Identity) (backup.Manifest, error) {
	m, _, err := backup.Read(context.Background(), bytes.NewReader(file), backup.Options{Identities: []age.Identity{identity}}, backup.Receiver{})
	return m, err
}

// TestReadSeesEveryBitAndEveryCut and whatever is appended.
func TestReadSeesEveryBitAndEveryCut(t *testing.T) {
	file, want, identity := backuptest.Small(t)
	if m, err := read(file, identity); err != nil || fmt.Sprint(m) != fmt.Sprint(want) {
		t.Fatalf("%v, %v; want %v", m, err, want)
	}
	bad := func(what string, b []byte) {
		if m, err := read(b, identity); err == nil {
			t.Errorf("%s: %+v", what, m)
		}
	}
	cores := runtime.GOMAXPROCS(0)
	var work sync.WaitGroup
	for core := range cores {
		work.Go(func() {
			b := bytes.Clone(file)
			for i := core; i < len(file); i += cores {
				for bit := range 8 {
					b[i] ^= 1 << bit
					bad(fmt.Sprintf("bit %d of byte %d of %d", bit, i, len(file)), b)
					b[i] ^= 1 << bit
				}
				bad(fmt.Sprintf("the first %d bytes of %d", i, len(file)), file[:i])
			}
		})
	}
	work.Wait()
	bad("a byte more", append(bytes.Clone(file), 0))
	if _, err := read(file, backuptest.Identity(t)); errors.As(err, new(*age.NoIdentityMatchError)) == false {
		t.Errorf("another identity: %v", err)
	}
}

// TestReadChecksWhatIsInIt: age lets anybody write one.
func TestReadChecksWhatIsInIt(t *testing.T) {
	file, m, identity := backuptest.Small(t)
	other, _, otherIdentity := backuptest.Small(t)
	foreign := backuptest.TakeApart(t, other, otherIdentity)
	tests := damagedKeys(t, m, foreign)
	maps.Copy(tests, damagedRest(t, m, foreign))
	for name, test := range tests {
		archive, err := backuptest.Archive(test.change(backuptest.TakeApart(t, file, identity))...)
		if err != nil {
			t.Fatal(err)
		}
		b := backuptest.Encrypt(t, append(archive, test.more...), identity.Recipient())
		got, err := read(b, identity)
		if !errors.Is(err, test.err) || len(got.Missing) != test.missing {
			t.Errorf("%s: %v, missing %v; want %v", name, err, got.Missing, test.err)
		}
		var snapshot bytes.Buffer
		keys := 0
		_, _, err = backup.Read(t.Context(), bytes.NewReader(b), backup.Options{Identities: []age.Identity{identity}}, backup.Receiver{
			Key:      func(m backup.Material) { keys++; m.Secret.Wipe() },
			Snapshot: func(backup.Manifest) (io.Writer, error) { return &snapshot, nil },
		})
		if !errors.Is(err, test.err) || err == nil && (keys != len(m.Keys) || int64(snapshot.Len()) != m.Raft.Size) {
			t.Errorf("%s: %v, with %d keys and %d bytes of a snapshot", name, err, keys, snapshot.Len())
		}
	}
}

// damage is a change of the parts of a backup, and what reading it says then.
type damage struct {
	change  func([]backuptest.Part) []backuptest.Part
	more    string
	missing int
	err     error
}

// edited returns a change of the parts that changes the manifest m.
func edited(t *testing.T, m backup.Manifest, change func(*backup.Manifest)) func([]backuptest.Part) []backuptest.Part {
	return func(parts []backuptest.Part) []backuptest.Part {
		m := m
		m.Keys = slices.Clone(m.Keys)
		change(&m)
		b, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		parts[0].Content = b
		return parts
	}
}

// damagedKeys are changes of the signature and of the keys.
func damagedKeys(t *testing.T, m backup.Manifest, foreign []backuptest.Part) map[string]damage {
	edit := func(change func(*backup.Manifest)) func([]backuptest.Part) []backuptest.Part {
		return edited(t, m, change)
	}
	return map[string]damage{
		"as it was":    {change: func(p []backuptest.Part) []backuptest.Part { return p }},
		"no signature": {change: func(p []backuptest.Part) []backuptest.Part { return p[:len(p)-1] }, err: nks.ErrCorrupt},
		"another's signature": {change: func(p []backuptest.Part) []backuptest.Part {
			p[len(p)-1].Content = foreign[len(foreign)-1].Content
			return p
		}, err: nks.ErrCorrupt},
		"another time":                {change: edit(func(m *backup.Manifest) { m.Created = m.Created.Add(1) }), err: nks.ErrCorrupt}, // the signature alone tells
		"signed, and called unsigned": {change: edit(func(m *backup.Manifest) { m.Format = "keyring backup 1" }), err: nks.ErrCorrupt},
		"a key less": {change: func(p []backuptest.Part) []backuptest.Part {
			return edit(func(m *backup.Manifest) { m.Keys = m.Keys[:1] })(slices.Delete(p, 2, 3))
		}, missing: 1, err: backup.ErrMissing},
		"no keys": {change: func(p []backuptest.Part) []backuptest.Part {
			return edit(func(m *backup.Manifest) { m.Keys = nil })(slices.Delete(p, 1, 3))
		}, missing: 2, err: backup.ErrMissing},
		"a key's file less": {change: func(p []backuptest.Part) []backuptest.Part { return slices.Delete(p, 2, 3) }, err: nks.ErrCorrupt},
		"a file more": {change: func(p []backuptest.Part) []backuptest.Part {
			return append(p, backuptest.Part{Header: tar.Header{Name: "more"}})
		}, err: nks.ErrCorrupt},
		"keys out of order": {change: func(p []backuptest.Part) []backuptest.Part { p[1], p[2] = p[2], p[1]; return p }, err: nks.ErrCorrupt},
		"one key twice": {change: func(p []backuptest.Part) []backuptest.Part {
			return edit(func(m *backup.Manifest) { m.Keys = append(m.Keys[:1], m.Keys...) })(slices.Insert(p, 1, p[1]))
		}, err: nks.ErrCorrupt},
		"another state":       {change: edit(func(m *backup.Manifest) { m.Keys[0].State = meta.StateDeprecated }), missing: 1, err: backup.ErrMissing},
		"another check value": {change: edit(func(m *backup.Manifest) { m.Keys[0].Check[0] ^= 1 }), err: nks.ErrCorrupt},
		"another's material": {change: func(p []backuptest.Part) []backuptest.Part {
			p[1].Content = bytes.ReplaceAll(foreign[1].Content, []byte(strings.TrimSuffix(strings.TrimPrefix(foreign[1].Name, "keystore/"), ".nks.json")), []byte(m.Keys[0].ID.String()))
			return p
		}, err: nks.ErrCorrupt},
	}
}

// damagedRest are changes of the snapshot, the manifest and the archive.
func damagedRest(t *testing.T, m backup.Manifest, foreign []backuptest.Part) map[string]damage {
	edit := func(change func(*backup.Manifest)) func([]backuptest.Part) []backuptest.Part {
		return edited(t, m, change)
	}
	return map[string]damage{
		"another cluster":    {change: edit(func(m *backup.Manifest) { m.Cluster = strings.Repeat("0", 32) }), err: nks.ErrCorrupt},
		"another's snapshot": {change: func(p []backuptest.Part) []backuptest.Part { p[3].Content = foreign[3].Content; return p }, err: nks.ErrCorrupt},
		"another size":       {change: edit(func(m *backup.Manifest) { m.Raft.Size-- }), err: nks.ErrCorrupt},
		"a snapshot cut short": {change: func(p []backuptest.Part) []backuptest.Part {
			p[3].Content = p[3].Content[:len(p[3].Content)-1]
			return p
		}, err: nks.ErrCorrupt},
		"a host's bytes added": {change: func(p []backuptest.Part) []backuptest.Part { p[3].Content = append(p[3].Content, 0); return p }, err: nks.ErrCorrupt},
		"a snapshot of a host": {change: func(p []backuptest.Part) []backuptest.Part {
			p[3].Content = []byte("it has no section of the keyring's")
			return edit(func(m *backup.Manifest) { m.Raft.Size = int64(len(p[3].Content)) })(p)
		}, err: nks.ErrCorrupt},
		"another format": {change: edit(func(m *backup.Manifest) { m.Format = "keyring backup 3" }), err: nks.ErrCorrupt},
		"a manifest of more": {change: func(p []backuptest.Part) []backuptest.Part {
			p[0].Content = []byte(`{"Format":"` + backup.Format + `","More":1}`)
			return p
		}, err: nks.ErrCorrupt},
		"two manifests":   {change: func(p []backuptest.Part) []backuptest.Part { p[0].Content = append(p[0].Content, "{}"...); return p }, err: nks.ErrCorrupt},
		"no manifest":     {change: func(p []backuptest.Part) []backuptest.Part { return p[1:] }, err: nks.ErrCorrupt},
		"nothing":         {change: func([]backuptest.Part) []backuptest.Part { return nil }, err: nks.ErrCorrupt},
		"a directory":     {change: func(p []backuptest.Part) []backuptest.Part { p[1].Typeflag = tar.TypeDir; p[1].Content = nil; return p }, err: nks.ErrCorrupt},
		"an archive more": {change: func(p []backuptest.Part) []backuptest.Part { return p }, more: "more", err: nks.ErrCorrupt},
	}
}
