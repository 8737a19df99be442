package keyring_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"example.com/keyring"
	"filippo.io/age"
)

// smallBackup is a backup of one server with two keys, of a few kilobytes.
func smallBackup(t *testing.T) ([]byte, keyring.Manifest, *age.X25519Identity) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	identity := newIdentity(t)
	n, err := keyring.Start(ctx, keyring.NodeConfig{
		Dir: t.TempDir(), KEKs: []keyring.KEK{keyring.InlineKEK()}, Tokens: keyring.TokenPolicy{Algorithm: "EdDSA"},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if _, err := n.Rotate(ctx, keyring.RotateOptions{}); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	m, err := n.Keyring().Backup(ctx, &out, identity.Recipient())
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes(), m, identity
}

// TestVerifyBackupSeesEveryBitAndEveryCut and whatever is appended.
func TestVerifyBackupSeesEveryBitAndEveryCut(t *testing.T) {
	file, want, identity := smallBackup(t)
	if m, err := keyring.VerifyBackup(bytes.NewReader(file), identity); err != nil || fmt.Sprint(m) != fmt.Sprint(want) {
		t.Fatalf("%v, %v; want %v", m, err, want)
	}
	bad := func(what string, b []byte) {
		if m, err := keyring.VerifyBackup(bytes.NewReader(b), identity); err == nil {
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
	if _, err := keyring.VerifyBackup(bytes.NewReader(file), newIdentity(t)); errors.As(err, new(*age.NoIdentityMatchError)) == false {
		t.Errorf("another identity: %v", err)
	}
}

// part is a file of a backup.
type part struct {
	tar.Header
	content []byte
}

// takeApart returns what is in a backup, and assemble makes one of it.
func takeApart(t *testing.T, file []byte, identity age.Identity) (parts []part) {
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
		content, e := io.ReadAll(archive)
		if err := errors.Join(err, e); err != nil {
			t.Fatal(err)
		}
		parts = append(parts, part{*h, content})
	}
}

func assemble(t *testing.T, parts []part, more string, to age.Recipient) []byte {
	t.Helper()
	var out bytes.Buffer
	sealed, err := age.Encrypt(&out, to)
	if err != nil {
		t.Fatal(err)
	}
	archive := tar.NewWriter(sealed)
	for _, p := range parts {
		p.Size = int64(len(p.content))
		if err := archive.WriteHeader(&p.Header); err != nil {
			t.Fatal(err)
		}
		archive.Write(p.content)
	}
	err = archive.Close()
	io.WriteString(sealed, more)
	if err := errors.Join(err, sealed.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestVerifyBackupChecksWhatIsInIt: age lets anybody write one.
func TestVerifyBackupChecksWhatIsInIt(t *testing.T) {
	file, m, identity := smallBackup(t)
	other, _, otherIdentity := smallBackup(t)
	edit := func(change func(*keyring.Manifest)) func([]part) []part {
		return func(parts []part) []part {
			m := m
			m.Keys = slices.Clone(m.Keys)
			change(&m)
			b, err := json.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			parts[0].content = b
			return parts
		}
	}
	foreign := takeApart(t, other, otherIdentity)
	tests := map[string]struct {
		change  func([]part) []part
		more    string
		missing int
		err     error
	}{
		"as it was":    {change: func(p []part) []part { return p }},
		"no signature": {change: func(p []part) []part { return p[:len(p)-1] }, err: keyring.ErrCorrupt},
		"another's signature": {change: func(p []part) []part {
			p[len(p)-1].content = foreign[len(foreign)-1].content
			return p
		}, err: keyring.ErrCorrupt},
		"another time":                {change: edit(func(m *keyring.Manifest) { m.Created = m.Created.Add(1) }), err: keyring.ErrCorrupt}, // the signature alone tells
		"signed, and called unsigned": {change: edit(func(m *keyring.Manifest) { m.Format = "keyring backup 1" }), err: keyring.ErrCorrupt},
		"a key less": {change: func(p []part) []part {
			return edit(func(m *keyring.Manifest) { m.Keys = m.Keys[:1] })(slices.Delete(p, 2, 3))
		}, missing: 1, err: keyring.ErrKeyMissing},
		"no keys":           {change: func(p []part) []part { return edit(func(m *keyring.Manifest) { m.Keys = nil })(slices.Delete(p, 1, 3)) }, missing: 2, err: keyring.ErrKeyMissing},
		"a key's file less": {change: func(p []part) []part { return slices.Delete(p, 2, 3) }, err: keyring.ErrCorrupt},
		"a file more":       {change: func(p []part) []part { return append(p, part{tar.Header{Name: "more"}, nil}) }, err: keyring.ErrCorrupt},
		"keys out of order": {change: func(p []part) []part { p[1], p[2] = p[2], p[1]; return p }, err: keyring.ErrCorrupt},
		"one key twice": {change: func(p []part) []part {
			return edit(func(m *keyring.Manifest) { m.Keys = append(m.Keys[:1], m.Keys...) })(slices.Insert(p, 1, p[1]))
		}, err: keyring.ErrCorrupt},
		"another state":       {change: edit(func(m *keyring.Manifest) { m.Keys[0].State = keyring.StateDeprecated }), missing: 1, err: keyring.ErrKeyMissing},
		"another check value": {change: edit(func(m *keyring.Manifest) { m.Keys[0].Check[0] ^= 1 }), err: keyring.ErrCorrupt},
		"another's material": {change: func(p []part) []part {
			p[1].content = bytes.ReplaceAll(foreign[1].content, []byte(strings.TrimSuffix(strings.TrimPrefix(foreign[1].Name, "keystore/"), ".nks.json")), []byte(m.Keys[0].ID.String()))
			return p
		}, err: keyring.ErrCorrupt},
		"another cluster":      {change: edit(func(m *keyring.Manifest) { m.Cluster = strings.Repeat("0", 32) }), err: keyring.ErrCorrupt},
		"another's snapshot":   {change: func(p []part) []part { p[3].content = foreign[3].content; return p }, err: keyring.ErrCorrupt},
		"another size":         {change: edit(func(m *keyring.Manifest) { m.Raft.Size-- }), err: keyring.ErrCorrupt},
		"a snapshot cut short": {change: func(p []part) []part { p[3].content = p[3].content[:len(p[3].content)-1]; return p }, err: keyring.ErrCorrupt},
		"a host's bytes added": {change: func(p []part) []part { p[3].content = append(p[3].content, 0); return p }, err: keyring.ErrCorrupt},
		"a snapshot of a host": {change: func(p []part) []part {
			p[3].content = []byte("it has no section of the keyring's")
			return edit(func(m *keyring.Manifest) { m.Raft.Size = int64(len(p[3].content)) })(p)
		}, err: keyring.ErrCorrupt},
		"another format": {change: edit(func(m *keyring.Manifest) { m.Format = "keyring backup 3" }), err: keyring.ErrCorrupt},
		"a manifest of more": {change: func(p []part) []part {
			p[0].content = []byte(`{"Format":"` + keyring.BackupFormat + `","More":1}`)
			return p
		}, err: keyring.ErrCorrupt},
		"two manifests":   {change: func(p []part) []part { p[0].content = append(p[0].content, "{}"...); return p }, err: keyring.ErrCorrupt},
		"no manifest":     {change: func(p []part) []part { return p[1:] }, err: keyring.ErrCorrupt},
		"nothing":         {change: func([]part) []part { return nil }, err: keyring.ErrCorrupt},
		"a directory":     {change: func(p []part) []part { p[1].Typeflag = tar.TypeDir; p[1].content = nil; return p }, err: keyring.ErrCorrupt},
		"an archive more": {change: func(p []part) []part { return p }, more: "more", err: keyring.ErrCorrupt},
	}
	for name, test := range tests {
		b := assemble(t, test.change(takeApart(t, file, identity)), test.more, identity.Recipient())
		got, err := keyring.VerifyBackup(bytes.NewReader(b), identity)
		if !errors.Is(err, test.err) || len(got.Missing) != test.missing {
			t.Errorf("%s: %v, missing %v; want %v", name, err, got.Missing, test.err)
		}
		dir := t.TempDir()
		_, err = keyring.Restore(t.Context(), bytes.NewReader(b), keyring.RestoreOptions{
			Dir: dir, KEKs: []keyring.KEK{keyring.InlineKEK()}, Identities: []age.Identity{identity}, Unauthenticated: true,
		})
		if !errors.Is(err, test.err) || (test.err != nil) != (len(keysIn(t, dir)) == 0) {
			t.Errorf("%s: restore: %v, and %v", name, err, keysIn(t, dir))
		}
	}
}

// keysIn names the key files in a directory.
func keysIn(t *testing.T, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*.nks.json"))
	if err != nil {
		t.Fatal(err)
	}
	return names
}
