package keyring_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/bounded/boundedtest"
	"example.com/keyring/internal/meta"
	"filippo.io/age"
	"github.com/hashicorp/raft"
)

// forgery is what is in a backup, for somebody who knows the recipients to write another.
type forgery struct {
	manifest keyring.Manifest
	ring     *meta.Ring
	parts    []part // the manifest first, the snapshot last: a forger can't sign
}

// forgeBackup returns a backup of the format that is not signed, with a change.
func forgeBackup(t *testing.T, file []byte, m keyring.Manifest, identity *age.X25519Identity, change func(*forgery)) []byte {
	t.Helper()
	parts := takeApart(t, file, identity)
	f := &forgery{manifest: m, parts: parts[:len(parts)-1]}
	snapshot := &f.parts[len(f.parts)-1]
	var err error
	if f.ring, err = meta.Decode(snapshot.content[meta.SnapshotHead:]); err != nil {
		t.Fatal(err)
	}
	f.manifest.Format = "keyring backup 1"
	before, err := f.ring.Encode()
	if err != nil {
		t.Fatal(err)
	}
	change(f)
	section, err := f.ring.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(section, before) {
		sum := sha256.Sum256(section)
		head := binary.BigEndian.AppendUint64([]byte("keyring-snapshot"), uint64(len(section)))
		snapshot.content = append(append(head, sum[:]...), section...)
		f.manifest.Raft.Size = int64(len(snapshot.content))
	}
	if f.parts[0].content, err = json.Marshal(f.manifest); err != nil {
		t.Fatal(err)
	}
	return assemble(t, f.parts, "", identity.Recipient())
}

// TestVerifyBackupProvesWhatAStartNeeds: each of these is whole, and would not start, or go wrong after it has.
func TestVerifyBackupProvesWhatAStartNeeds(t *testing.T) {
	file, m, identity := smallBackup(t)
	_, stranger, _ := smallBackup(t)
	var other *meta.Ring
	forgeBackup(t, file, m, identity, func(f *forgery) { other = f.ring })
	lie := func(change func(*raft.SnapshotMeta)) func(*forgery) {
		return func(f *forgery) {
			f.manifest.Raft.Configuration = f.manifest.Raft.Configuration.Clone()
			change(&f.manifest.Raft)
		}
	}
	servers := func(s ...raft.Server) func(*forgery) {
		return lie(func(r *raft.SnapshotMeta) { r.Configuration.Servers = s })
	}
	last := other.LastIndex()
	for name, c := range map[string]struct {
		change func(*forgery)
		good   bool
	}{
		"nothing":             {func(*forgery) {}, true},
		"no index":            {lie(func(r *raft.SnapshotMeta) { r.Index, r.ConfigurationIndex = 0, 0 }), false},
		"the last index":      {lie(func(r *raft.SnapshotMeta) { r.Index = math.MaxUint64 }), false},
		"the index of a key":  {lie(func(r *raft.SnapshotMeta) { r.Index = last }), true},
		"an index before":     {lie(func(r *raft.SnapshotMeta) { r.Index = last - 1 }), false},
		"no term":             {lie(func(r *raft.SnapshotMeta) { r.Term = 0 }), false},
		"the last term":       {lie(func(r *raft.SnapshotMeta) { r.Term = math.MaxUint64 }), false},
		"a version":           {lie(func(r *raft.SnapshotMeta) { r.Version = 2 }), false},
		"a version below":     {lie(func(r *raft.SnapshotMeta) { r.Version = -1 }), false},
		"a later server list": {lie(func(r *raft.SnapshotMeta) { r.ConfigurationIndex = r.Index + 1 }), false},
		"no servers":          {servers(), false},
		"no voter":            {servers(raft.Server{ID: "a", Address: "a", Suffrage: raft.Nonvoter}), false},
		"a server twice":      {servers(raft.Server{ID: "a", Address: "a"}, raft.Server{ID: "a", Address: "b"}), false},
		"an address twice":    {servers(raft.Server{ID: "a", Address: "a"}, raft.Server{ID: "b", Address: "a"}), false},
		"no ID":               {servers(raft.Server{Address: "a"}), false},
		"no address":          {servers(raft.Server{ID: "a"}), false},
		"no suffrage":         {servers(raft.Server{ID: "a", Address: "a"}, raft.Server{ID: "b", Address: "b", Suffrage: 9}), false},
		"a size below":        {lie(func(r *raft.SnapshotMeta) { r.Size = -1 }), false},
		"a backup to come": {func(f *forgery) {
			f.ring.Backup = meta.Backup{Index: m.Raft.Index + 1, Time: m.Created, Digest: meta.Digest{1}}
		}, false},
		"a key to come": {func(f *forgery) { f.ring.Keys[0].ModifyIndex = m.Raft.Index + 1 }, false},
		"a removal to come": {func(f *forgery) {
			f.ring.Removed = []meta.Tombstone{{ID: keyring.KeyID{1}, Removed: m.Created, Index: m.Raft.Index + 1}}
		}, false},
		"another's public key":    {func(f *forgery) { f.ring.Keys[0].Public = f.ring.Keys[1].Public }, false},
		"a public key of nobody":  {func(f *forgery) { f.ring.Keys[0].Public = []byte{1} }, false},
		"another algorithm":       {func(f *forgery) { f.ring.Keys[0].Algorithm = "ES256" }, false},
		"another cluster's name":  {func(f *forgery) { f.manifest.Cluster = stranger.Cluster }, false},
		"two clusters of its own": {func(f *forgery) { f.ring.Cluster = meta.ClusterID{1} }, false},
	} {
		forged := forgeBackup(t, file, m, identity, c.change)
		if _, err := keyring.VerifyBackup(bytes.NewReader(forged), identity); (err == nil) != c.good {
			t.Errorf("%s: %v", name, err)
		}
		dir := filepath.Join(t.TempDir(), "node")
		cfg := keyring.NodeConfig{Dir: dir, KEKs: []keyring.KEK{keyring.InlineKEK()}, Tokens: keyring.TokenPolicy{Algorithm: "EdDSA"}}
		_, err := keyring.RestoreNode(t.Context(), bytes.NewReader(forged), cfg, keyring.RestoreOptions{
			Identities: []age.Identity{identity}, Unauthenticated: true,
		})
		if (err == nil) != c.good {
			t.Errorf("%s: restore: %v", name, err)
		}
		if _, err := os.Lstat(dir); !c.good && !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: it has left %v", name, left(t, dir))
		}
		if c.good {
			startsAndGoesOn(t, name, cfg)
		}
	}
}

// left names all files below a directory, but for lock files.
func left(t *testing.T, dir string) (names []string) {
	t.Helper()
	filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() && d.Name() != ".lock" {
			names = append(names, path[len(dir):])
		}
		return nil
	})
	return names
}

// startsAndGoesOn wants a node that was restored to rotate, to be backed up, and to start again from a snapshot
// of its own.
func startsAndGoesOn(t *testing.T, what string, cfg keyring.NodeConfig) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for range 2 {
		n, err := keyring.Start(ctx, cfg)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		_, rotated := n.Rotate(ctx, keyring.RotateOptions{})
		_, backedUp := n.Keyring().Backup(ctx, io.Discard, newIdentity(t).Recipient())
		if err := errors.Join(rotated, backedUp, n.Close()); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

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
	file, m, identity := smallBackup(t)
	m.Format, m.Raft.Size = "keyring backup 1", size
	parts := takeApart(t, file, identity)
	manifest, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	parts[0].content = manifest
	var out bytes.Buffer
	sealed, err := age.Encrypt(&out, identity.Recipient())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range parts[:len(parts)-2] {
		sealed.Write(rawFile(p.Name, tar.TypeReg, len(p.content), string(p.content)))
	}
	sealed.Write(snapshot(string(parts[len(parts)-2].content)))
	sealed.Write(make([]byte, 1024))
	if err := sealed.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes(), identity
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
		if _, err := keyring.VerifyBackup(bytes.NewReader(file), identity); !errors.Is(err, keyring.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
		var disk bytes.Buffer
		_, err := keyring.Restore(t.Context(), bytes.NewReader(file), keyring.RestoreOptions{
			Dir: t.TempDir(), KEKs: []keyring.KEK{keyring.InlineKEK()}, Identities: []age.Identity{identity}, Snapshot: &disk, Unauthenticated: true,
		})
		if err == nil || disk.Len() > 0 {
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
		if err != nil || h.Size != size || !keyring.PlainHeader(h) {
			t.Errorf("%d bytes: %+v, %v", size, h, err)
		}
	}
}

// TestBackupHasNoMoreThanMaxBytes, and not a byte of its snapshot is handed on before that is known.
func TestBackupHasNoMoreThanMaxBytes(t *testing.T) {
	file, m, identity := smallBackup(t)
	read := func(most int64) (snapshot bytes.Buffer, err error) {
		_, verified := keyring.VerifyBackupContext(t.Context(), bytes.NewReader(file), keyring.VerifyOptions{
			Identities: []age.Identity{identity}, MaxBytes: most,
		})
		_, err = keyring.Restore(t.Context(), bytes.NewReader(file), keyring.RestoreOptions{
			Dir: t.TempDir(), KEKs: []keyring.KEK{keyring.InlineKEK()}, Identities: []age.Identity{identity},
			Digest: m.SHA256, MaxBytes: most, Snapshot: &snapshot,
		})
		if (err == nil) != (verified == nil) {
			t.Errorf("at most %d bytes: %v, %v", most, err, verified)
		}
		return snapshot, err
	}
	if _, err := read(int64(len(file))); err != nil {
		t.Errorf("as many as the file has: %v", err)
	}
	large := forgeBackup(t, file, m, identity, func(f *forgery) { f.manifest.Raft.Size = 1 << 40 })
	_, err := keyring.VerifyBackupContext(t.Context(), bytes.NewReader(large), keyring.VerifyOptions{
		Identities: []age.Identity{identity}, MaxBytes: 1 << 39,
	})
	if err == nil || !strings.Contains(err.Error(), "its snapshot has 1099511627776 bytes") { // before it is read
		t.Errorf("a snapshot that is larger: %v", err)
	}
	for _, most := range []int64{-1, 1, m.Raft.Size - 1, m.Raft.Size} {
		if snapshot, err := read(most); err == nil || snapshot.Len() > 0 {
			t.Errorf("%d: %v, and %d bytes", most, err, snapshot.Len())
		}
	}
}

// endsAfter is a reader during which a context ends.
type endsAfter struct {
	io.Reader
	left int
	end  context.CancelFunc
}

func (e *endsAfter) Read(b []byte) (int, error) {
	if e.left--; e.left == 0 {
		e.end()
	}
	return e.Reader.Read(b[:min(len(b), 100)])
}

// TestReadingABackupEndsWithItsContext wherever it is.
func TestReadingABackupEndsWithItsContext(t *testing.T) {
	file, m, identity := smallBackup(t)
	for reads := 1; reads < len(file)/100; reads += 7 {
		ctx, cancel := context.WithCancel(t.Context())
		r := &endsAfter{bytes.NewReader(file), reads, cancel}
		if _, err := keyring.VerifyBackupContext(ctx, r, keyring.VerifyOptions{Identities: []age.Identity{identity}}); !errors.Is(err, context.Canceled) || r.left < 0 {
			t.Errorf("verify after %d reads: %v, and %d more", reads, err, -r.left)
		}
		ctx, cancel = context.WithCancel(t.Context())
		dir := filepath.Join(t.TempDir(), "keystore")
		r = &endsAfter{bytes.NewReader(file), reads, cancel}
		_, err := keyring.Restore(ctx, r, keyring.RestoreOptions{
			Dir: dir, KEKs: []keyring.KEK{keyring.InlineKEK()}, Identities: []age.Identity{identity}, Digest: m.SHA256,
		})
		if _, none := os.Lstat(dir); !errors.Is(err, context.Canceled) || r.left < 0 || none == nil {
			t.Errorf("restore after %d reads: %v, and %d more; %v", reads, err, -r.left, none)
		}
	}
}

// TestLyingManifestCostsLittle: what is long, or has many elements that are none, is left early.
func TestLyingManifestCostsLittle(t *testing.T) {
	_, m, _ := smallBackup(t)
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	good := string(b)
	if got, err := keyring.DecodeManifest(strings.NewReader(good)); err != nil || len(got.Keys) != 2 {
		t.Fatalf("%+v, %v", got, err)
	}
	for _, lie := range []string{
		strings.Replace(good, m.Keys[0].ID.String(), keyring.KeyID{}.String(), 1),
		strings.Replace(good, fmt.Sprintf(`"Check":"%x"`, m.Keys[0].Check), `"Check":"`+strings.Repeat("0", 64)+`"`, 1),
		strings.Replace(good, `"State":"active"`, `"State":"Active"`, 1),
		strings.Replace(good, `"State":"active"`, `"state":"active"`, 1),
		strings.Replace(good, `"State":"active"`, `"State":"active","State":"active"`, 1),
		strings.Replace(good, `"Cluster":`, `"Cluster":"","Cluster":`, 1),
		strings.Replace(good, `"Keys":[`, `"More":[],"Keys":[`, 1),
	} {
		if _, err := keyring.DecodeManifest(strings.NewReader(lie)); err == nil || lie == good {
			t.Errorf("a manifest: %s", lie)
		}
	}
	many := func(what string) string { return strings.Repeat(what+",", 8<<20/len(what)) + what }
	key := `{"ID":"%s","State":"active","Check":"` + strings.Repeat("1", 64) + `"}`
	before, _, _ := strings.Cut(good, `"Keys":[`)
	raftOf := func(what string) string {
		return before[:strings.Index(before, `"Raft":`)] + `"Raft":` + what + `,"Keys":[]}`
	}
	for name, lie := range map[string]string{
		"empty keys":        before + `"Keys":[` + many("{}") + `]}`,
		"nulls for keys":    before + `"Keys":[` + many("null") + `]}`,
		"the same key":      before + `"Keys":[` + many(fmt.Sprintf(key, m.Keys[0].ID)) + `]}`,
		"one long key":      before + `"Keys":[{"ID":"` + strings.Repeat("1", 8<<20) + `"}]}`,
		"many servers":      raftOf(`{"Configuration":{"Servers":[` + many("{}") + `]}}`),
		"a long list":       raftOf(`{"Configuration":{"Servers":[` + strings.Repeat(`{},`, 300_000) + `{}]}}`),
		"a member again":    raftOf(`{` + strings.Repeat(`"Index":1,`, 100_000) + `"Index":1}`),
		"a long format":     `{"Format":"` + strings.Repeat("a", 8<<20) + `"}`,
		"a long name":       `{"` + strings.Repeat("a", 8<<20) + `":1}`,
		"nothing but space": strings.Repeat(" ", 8<<20),
		"space for a key":   before + `"Keys":[` + strings.Repeat("\n", 8<<20),
		"space at the end":  good + strings.Repeat(" ", 8<<20),
		"deep":              raftOf(strings.Repeat("[", 900_000) + strings.Repeat("]", 900_000)),
	} {
		boundedtest.Memory(t, 0, 8<<20, 0, func() {
			if got, err := keyring.DecodeManifest(strings.NewReader(lie)); err == nil {
				t.Errorf("%s: %d keys", name, len(got.Keys))
			}
		})
	}
	var keys strings.Builder
	for i := range 50_000 {
		fmt.Fprintf(&keys, key+",", keyring.KeyID{1, byte(i >> 16), byte(i >> 8), byte(i)})
	}
	long := before + `"Keys":[` + strings.TrimSuffix(keys.String(), ",") + `]}`
	boundedtest.Memory(t, len(long), 1<<20, 16, func() { // most of it is garbage at once
		if got, err := keyring.DecodeManifest(strings.NewReader(long)); err != nil || len(got.Keys) != 50_000 {
			t.Errorf("%d keys, %v", len(got.Keys), err)
		}
	})
}
