package backup_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"example.com/keyring/internal/backup"
	"example.com/keyring/internal/backup/backuptest"
	"example.com/keyring/internal/nks"
	"filippo.io/age"
)

// rawFile is a file of an archive with the header as it is given: archive/tar writes no sparse ones.
func rawFile(name string, kind byte, size int, content string) []byte {
	h := make([]byte, 512)
	put := func(at int, format string, args ...any) { copy(h[at:], fmt.Sprintf(format, args...)) }
	put(0, "%s", name)
	put(100, "0000600\x000000000\x000000000\x00%011o\x00%011o\x00        %c", size, 0, kind)
	put(257, "ustar\x0000")
	sum := 0
	for _, b := range h {
		sum += int(b)
	}
	put(148, "%06o\x00 ", sum)
	return append(h, content+strings.Repeat("\x00", (512-len(content)%512)%512)...)
}

func paxRecords(pairs ...string) (records string) {
	for i := 0; i < len(pairs); i += 2 {
		line := fmt.Sprintf(" %s=%s\n", pairs[i], pairs[i+1])
		n := len(line) + 1
		for len(fmt.Sprint(n))+len(line) != n {
			n++
		}
		records += fmt.Sprint(n) + line
	}
	return records
}

// unpackable is an archive with a snapshot of size bytes, of which the content alone is there.
func unpackable(t *testing.T, size int64, snapshot func(content string) []byte) (file []byte, identity *age.X25519Identity) {
	t.Helper()
	file, m, identity := backuptest.Small(t)
	m.Format, m.Raft.Size = "keyring backup 1", size
	parts := backuptest.TakeApart(t, file, identity)
	manifest, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	parts[0].Content = manifest
	var out bytes.Buffer
	sealed, err := age.Encrypt(&out, identity.Recipient())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range parts[:len(parts)-2] {
		sealed.Write(rawFile(p.Name, tar.TypeReg, len(p.Content), string(p.Content)))
	}
	sealed.Write(snapshot(string(parts[len(parts)-2].Content)))
	sealed.Write(make([]byte, 1024))
	if err := sealed.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes(), identity
}

// writesTo is a Receiver of the snapshot.
func writesTo(w io.Writer) backup.Receiver {
	return backup.Receiver{Snapshot: func(backup.Manifest) (io.Writer, error) { return w, nil }}
}

// TestBackupUnpacksToNoMoreThanItHas: in a sparse file a few bytes stand for as many as one likes.
func TestBackupUnpacksToNoMoreThanItHas(t *testing.T) {
	const size = 1 << 26
	text := fmt.Sprint(int64(size))
	for name, snapshot := range map[string]func(string) []byte{
		"sparse 0.0": func(c string) []byte {
			r := paxRecords("GNU.sparse.size", text, "GNU.sparse.numblocks", "1", "GNU.sparse.offset", "0", "GNU.sparse.numbytes", fmt.Sprint(len(c)))
			return append(rawFile("p", tar.TypeXHeader, len(r), r), rawFile("snapshot", tar.TypeReg, len(c), c)...)
		},
		"sparse 0.1": func(c string) []byte {
			r := paxRecords("GNU.sparse.major", "0", "GNU.sparse.minor", "1", "GNU.sparse.name", "snapshot", "GNU.sparse.size", text,
				"GNU.sparse.numblocks", "1", "GNU.sparse.map", fmt.Sprintf("0,%d", len(c)))
			return append(rawFile("p", tar.TypeXHeader, len(r), r), rawFile("snapshot", tar.TypeReg, len(c), c)...)
		},
		"sparse 1.0": func(c string) []byte {
			r := paxRecords("GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.name", "snapshot", "GNU.sparse.realsize", text)
			list := fmt.Sprintf("1\n0\n%d\n", len(c))
			list += strings.Repeat("\x00", 512-len(list))
			return append(rawFile("p", tar.TypeXHeader, len(r), r), rawFile("snapshot", tar.TypeReg, len(list)+len(c), list+c)...)
		},
		"a record of PAX besides": func(c string) []byte {
			r := paxRecords("comment", "more")
			return append(rawFile("p", tar.TypeXHeader, len(r), r), rawFile("snapshot", tar.TypeReg, len(c), c)...)
		},
		"the sparse files of GNU": func(c string) []byte { return rawFile("snapshot", tar.TypeGNUSparse, len(c), c) },
	} {
		file, identity := unpackable(t, size, snapshot)
		var disk bytes.Buffer
		_, _, err := backup.Read(t.Context(), bytes.NewReader(file), backup.Options{Identities: []age.Identity{identity}}, writesTo(&disk))
		if !errors.Is(err, nks.ErrCorrupt) || disk.Len() > 0 {
			t.Errorf("%s: %d bytes are written; %v", name, disk.Len(), err)
		}
	}
}

// TestLargeSnapshotIsStoredAsItIs: from 8 GiB on archive/tar writes its size elsewhere, and that is taken.
func TestLargeSnapshotIsStoredAsItIs(t *testing.T) {
	for _, size := range []int64{1, 8<<30 - 1, 8 << 30, 1 << 50} {
		var out bytes.Buffer
		if err := tar.NewWriter(&out).WriteHeader(&tar.Header{Name: "snapshot", Mode: 0o600, Size: size, ModTime: time.Now()}); err != nil {
			t.Fatal(err)
		}
		h, err := tar.NewReader(&out).Next()
		if err != nil || h.Size != size || !backup.IsPlain(h) {
			t.Errorf("%d bytes: %+v, %v", size, h, err)
		}
	}
}

// TestBackupHasNoMoreThanMaxBytes, and not a byte of its snapshot is handed on before that is known.
func TestBackupHasNoMoreThanMaxBytes(t *testing.T) {
	file, m, identity := backuptest.Small(t)
	read := func(file []byte, most int64) (snapshot bytes.Buffer, err error) {
		_, _, err = backup.Read(t.Context(), bytes.NewReader(file), backup.Options{
			Identities: []age.Identity{identity}, MaxBytes: most,
		}, writesTo(&snapshot))
		return snapshot, err
	}
	if _, err := read(file, int64(len(file))); err != nil {
		t.Errorf("as many as the file has: %v", err)
	}
	large := backuptest.Forge(t, file, identity, func(f *backuptest.Forgery) { f.Manifest.Raft.Size = 1 << 40 })
	_, err := read(large, 1<<39)
	if err == nil || !strings.Contains(err.Error(), "its snapshot has 1099511627776 bytes") { // before it is read
		t.Errorf("a snapshot that is larger: %v", err)
	}
	for _, most := range []int64{-1, 1, m.Raft.Size - 1, m.Raft.Size} {
		if snapshot, err := read(file, most); err == nil || snapshot.Len() > 0 {
			t.Errorf("%d: %v, and %d bytes", most, err, snapshot.Len())
		}
	}
}

// TestReadEndsWithItsContext wherever it is, and hands on no key then.
func TestReadEndsWithItsContext(t *testing.T) {
	file, _, identity := backuptest.Small(t)
	for reads := 1; reads < len(file)/100; reads += 7 {
		ctx, cancel := context.WithCancel(t.Context())
		r := &backuptest.EndsAfter{Reader: bytes.NewReader(file), Left: reads, End: cancel}
		_, _, err := backup.Read(ctx, r, backup.Options{Identities: []age.Identity{identity}}, backup.Receiver{})
		if !errors.Is(err, context.Canceled) || r.Left < 0 {
			t.Errorf("after %d reads: %v, and %d more", reads, err, -r.Left)
		}
	}
}
