package keyring_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/meta"
	"example.com/keyring/node"
	"filippo.io/age"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
)

// goldenDir is the golden set of version 1. Its README.txt says what is in it.
const goldenDir = "testdata/v1"

var writeGolden = flag.Bool("golden.write", false, "write the golden set into "+goldenDir+", which must not exist")

// golden is set.json: what the other files of a set have to come out as, and the secrets they open
// with, which protect nothing else.
type golden struct {
	FileKEK    string // hexadecimal
	Passphrase string
	AgeKEK     string // an age identity
	BackupKey  string // another
	BackupSum  string // SHA-256 in hexadecimal
	Cluster    string // in the backup's manifest
	KeystoreID string // as its file has it
	Keys       map[string]goldenKey
	Removed    keyring.KeyID // its file is still in the keystores
	JWKS       json.RawMessage
	App        []string // what the host's FSM has applied, in order
	AppThen    string   // and had in snapshot.bin, a line each
	Sealed     []goldenSealed
	Tokens     []goldenToken
}

type goldenKey struct {
	State     keyring.State
	Algorithm string
}

type goldenSealed struct {
	Key                        keyring.KeyID
	Plaintext, AAD, Ciphertext []byte
}

type goldenToken struct {
	Key       keyring.KeyID
	Algorithm string
	Token     string
}

// goldenClaims are those of the tokens. They end with the year 2099.
var goldenClaims = map[string]any{
	"aud": "me", "sub": "job:web", "jti": "1", "iat": 1767225600, "nbf": 1767225600, "exp": int64(4102444800), "extra": []any{true, nil, 1.5},
}

// keks are those of the keystores of a set, by the name of the keystore.
func (g golden) keks(t *testing.T) map[string]keyring.KEK {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kek")
	if err := os.WriteFile(path, []byte(g.FileKEK), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := keyring.FileKEK(path)
	if err != nil {
		t.Fatal(err)
	}
	passphrase, err := keyring.PassphraseKEK([]byte(g.Passphrase))
	if err != nil {
		t.Fatal(err)
	}
	identity := parseIdentity(t, g.AgeKEK)
	escrow, err := keyring.AgeKEK([]age.Recipient{identity.Recipient()}, identity)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]keyring.KEK{"": file, "keystore-inline": keyring.InlineKEK(), "keystore-passphrase": passphrase, "keystore-age": escrow}
}

func parseIdentity(t *testing.T, text string) *age.X25519Identity {
	t.Helper()
	identity, err := age.ParseX25519Identity(text)
	if err != nil {
		t.Fatal(err)
	}
	return identity
}

// goldenNode starts the Node of a set.
func goldenNode(t *testing.T, dir, algorithm string, kek keyring.KEK, old ...keyring.KEK) (*node.Node, *keyringtest.App) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	host := &keyringtest.App{}
	const years = 365 * 24 * time.Hour
	n, err := node.Start(ctx, node.Config{
		Dir: dir, KEKs: []keyring.KEK{kek}, OldKEKs: old, App: host, Data: keyring.NoData{}, Logger: keyringtest.Logger(),
		Rotation: keyring.RotationPolicy{Every: -1, Undo: 100 * years},
		Tokens:   keyring.TokenPolicy{Issuer: keyringtest.TokenIssuer, Algorithm: algorithm, MaxTTL: 100 * years},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	if err := n.Keyring().WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	return n, host
}

// TestGoldenSet opens everything of the version 1 that was.
func TestGoldenSet(t *testing.T) { checkGolden(t, goldenDir) }

// TestGoldenSetOfThisBuild writes a set as this build does, and opens it. With -golden.write it is the
// one to keep, if there is none.
func TestGoldenSetOfThisBuild(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "set")
	if *writeGolden {
		dir = goldenDir
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err) // what is there stays as it is
	}
	makeGolden(t, dir)
	checkGolden(t, dir)
}

// makeGolden lets a Node live and keeps what is left of it.
func makeGolden(t *testing.T, set string) {
	random := func(n int) string { b := make([]byte, n); rand.Read(b); return hex.EncodeToString(b) }
	g := golden{
		FileKEK: random(32), Passphrase: "golden " + random(8), AgeKEK: kektest.Identity(t).String(), BackupKey: kektest.Identity(t).String(),
		Keys: map[string]goldenKey{},
	}
	keks := g.keks(t)
	dir := t.TempDir()

	n, _ := goldenNode(t, dir, "RS256", keks[""])
	g.use(t, n, "", "one", strings.Repeat("long", 100))
	keyringtest.CloseNode(t, n)
	n, host := goldenNode(t, dir, "ES256", keks[""])
	goldenRotate(t, n, keyring.RotateOptions{})
	g.use(t, n, "two")
	if err := keyring.Raft(n.Keyring()).Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	g.AppThen = host.Text()
	snaps, err := filepath.Glob(filepath.Join(dir, "raft/snapshots/*/state.bin"))
	if err != nil || len(snaps) != 1 {
		t.Fatal(snaps, err)
	}
	writeFile(t, filepath.Join(set, "snapshot.bin"), readFile(t, snaps[0]))
	keyringtest.CloseNode(t, n)

	n, _ = goldenNode(t, dir, "EdDSA", keks[""])
	g.Removed = goldenRotate(t, n, keyring.RotateOptions{})
	goldenRotate(t, n, keyring.RotateOptions{Full: true, Revoke: []keyring.KeyID{g.Removed}})
	g.use(t, n, "three")
	if err := n.Remove(t.Context(), g.Removed, keyring.RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := keyring.Store(n.Keyring()).SetAside(meta.KeyID(g.Removed), func(meta.KeyID) bool { return true }); err != nil { // now, and not soon
		t.Fatal(err)
	}
	goldenRotate(t, n, keyring.RotateOptions{Publish: time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)})
	var backup bytes.Buffer
	m, err := n.Keyring().Backup(t.Context(), &backup, parseIdentity(t, g.BackupKey).Recipient())
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(set, "backup.age"), backup.Bytes())
	g.BackupSum, g.Cluster = hex.EncodeToString(m.SHA256[:]), m.Cluster
	if _, err := n.Apply(t.Context(), []byte("after the backup")); err != nil {
		t.Fatal(err)
	}
	g.App = append(g.App, "after the backup")
	g.JWKS = n.Keyring().JWKS()
	for _, k := range n.Keyring().Keys() {
		g.Keys[k.ID.String()] = goldenKey{k.State, k.Algorithm}
	}
	keyringtest.CloseNode(t, n)
	g.KeystoreID = string(readFile(t, filepath.Join(dir, "keystore/keystore.id")))
	pack(t, dir, filepath.Join(set, "node.tar.gz"))
	rewrapped(t, dir, set, keks)
	g.write(t, set)
}

func (g *golden) write(t *testing.T, set string) {
	t.Helper()
	text, err := json.MarshalIndent(g, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(set, "set.json"), append(text, '\n'))
}

// use seals texts, applies commands and signs a token, and keeps all of it.
func (g *golden) use(t *testing.T, n *node.Node, texts ...string) {
	t.Helper()
	for _, text := range texts {
		aad := []byte("aad of " + text)
		c, err := n.Encrypt(t.Context(), []byte(text), aad)
		if err != nil {
			t.Fatal(err)
		}
		id, _ := keyring.CiphertextKeyID(c)
		g.Sealed = append(g.Sealed, goldenSealed{id, []byte(text), aad, c})
		if _, err := n.Apply(t.Context(), []byte("put "+text)); err != nil {
			t.Fatal(err)
		}
		g.App = append(g.App, "put "+text)
	}
	token, err := n.Sign(t.Context(), goldenClaims)
	if err != nil {
		t.Fatal(err)
	}
	active := n.Keyring().Keys()[0]
	g.Tokens = append(g.Tokens, goldenToken{active.ID, active.Algorithm, token})
}

func goldenRotate(t *testing.T, n *node.Node, o keyring.RotateOptions) keyring.KeyID {
	t.Helper()
	key, err := n.Rotate(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return key.ID
}

// rewrapped adds to a set the keystore under each other KEK.
func rewrapped(t *testing.T, dir, set string, keks map[string]keyring.KEK) {
	t.Helper()
	for name, kek := range keks {
		if name == "" {
			continue
		}
		copied := t.TempDir()
		if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
		n, _ := goldenNode(t, copied, "EdDSA", kek, keks[""])
		if err := n.Keyring().Rewrap(t.Context()); err != nil {
			t.Fatal(err)
		}
		keyringtest.CloseNode(t, n)
		if err := os.CopyFS(filepath.Join(set, name), os.DirFS(filepath.Join(copied, "keystore"))); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(filepath.Join(set, name, ".lock")); err != nil {
			t.Fatal(err)
		}
	}
}

// checkGolden opens everything of a set.
func checkGolden(t *testing.T, set string) {
	var g golden
	if err := json.Unmarshal(readFile(t, filepath.Join(set, "set.json")), &g); err != nil {
		t.Fatal(err)
	}
	for name, kek := range g.keks(t) {
		t.Run("node "+name, func(t *testing.T) {
			dir := t.TempDir()
			unpack(t, filepath.Join(set, "node.tar.gz"), dir)
			if name != "" {
				replaceKeystore(t, filepath.Join(dir, "keystore"), filepath.Join(set, name))
			}
			g.checkKeystore(t, filepath.Join(dir, "keystore"), kek)
			n, host := goldenNode(t, dir, "EdDSA", kek)
			g.check(t, n)
			if got := host.Text(); got != strings.Join(g.App, "\n") {
				t.Errorf("the host's FSM has %q", got)
			}
			g.goOn(t, n, kek, dir)
			if got := string(readFile(t, filepath.Join(dir, "keystore/keystore.id"))); got != g.KeystoreID {
				t.Errorf("the keystore has become %q", got)
			}
		})
	}
	t.Run("backup", g.checkBackup(set))
	t.Run("snapshot", g.checkSnapshot(set))
	t.Run("log", func(t *testing.T) { g.checkLog(t, set) })
}

// checkKeystore requires each file of a keystore to open, and those to be there that should.
func (g golden) checkKeystore(t *testing.T, dir string, kek keyring.KEK) {
	t.Helper()
	reports, err := keyring.Inspect(t.Context(), dir, kek)
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string]goldenKey{}
	removed := 0
	for _, r := range reports {
		switch r.Kind {
		case keyring.FileOwn:
			continue
		case keyring.FileKey:
			keys[r.Key.String()] = goldenKey{g.Keys[r.Key.String()].State, r.Algorithm}
		case keyring.FileRemoved:
			if removed++; r.Key != g.Removed {
				t.Errorf("%s is of key %s", r.Name, r.Key)
			}
		default:
			t.Errorf("%s is %s", r.Name, r.Kind)
		}
		if r.Err != nil || !slices.Equal(r.Opens, []string{kek.ID()}) || !slices.Equal(r.KEKs, r.Opens) {
			t.Errorf("%s: %+v", r.Name, r)
		}
	}
	if !reflect.DeepEqual(keys, g.Keys) || removed != 1 {
		t.Errorf("the keystore has %v and %d removed keys", keys, removed)
	}
}

// check requires a Node to open what was sealed and signed, and to have the keys as they were.
func (g golden) check(t *testing.T, n *node.Node) {
	t.Helper()
	for _, s := range g.Sealed {
		got, err := n.Keyring().DecryptDeprecated(s.Ciphertext, s.AAD) // some of the keys are
		if id, _ := keyring.CiphertextKeyID(s.Ciphertext); err != nil || !bytes.Equal(got, s.Plaintext) || id != s.Key {
			t.Errorf("%.20q: %.20q, %v", s.Plaintext, got, err)
		}
		if _, err := n.Keyring().DecryptDeprecated(s.Ciphertext, append(s.AAD, 0)); !errors.Is(err, keyring.ErrDecrypt) {
			t.Errorf("%.20q, another AAD: %v", s.Plaintext, err)
		}
	}
	algorithms := map[string]bool{}
	for _, token := range g.Tokens {
		var claims map[string]any
		if err := n.Keyring().Verify(token.Token, keyringtest.ForMe, &claims); err != nil {
			t.Errorf("token of %s: %v", token.Algorithm, err)
		}
		delete(claims, "iss")
		if fmt.Sprint(claims) != fmt.Sprint(roundTrip(t, goldenClaims)) {
			t.Errorf("token of %s: claims %v", token.Algorithm, claims)
		}
		algorithms[token.Algorithm] = true
	}
	if len(algorithms) != 3 {
		t.Errorf("tokens of %v", algorithms)
	}
	keys := map[string]goldenKey{}
	for _, k := range n.Keyring().Keys() {
		keys[k.ID.String()] = goldenKey{k.State, k.Algorithm}
		if !slices.Equal(k.Holders, []raft.ServerID{"server"}) {
			t.Errorf("%s is held by %v", k.ID, k.Holders)
		}
	}
	if !reflect.DeepEqual(keys, g.Keys) {
		t.Errorf("keys %v, want %v", keys, g.Keys)
	}
	if got, want := roundTrip(t, json.RawMessage(n.Keyring().JWKS())), roundTrip(t, g.JWKS); !reflect.DeepEqual(got, want) {
		t.Errorf("JWKS %v, want %v", got, want)
	}
	st, err := n.Keyring().Status(t.Context())
	if err != nil || len(st.Missing)+len(st.Orphans)+len(st.SetAside)+st.OnOldKEKs > 0 {
		t.Errorf("status %s, %v", st, err)
	}
	if !st.LastBackup.Time.IsZero() && hex.EncodeToString(st.LastBackup.SHA256[:]) != g.BackupSum {
		t.Errorf("last backup %v", st.LastBackup)
	}
}

// goOn requires a Node to rotate, also after another start.
func (g golden) goOn(t *testing.T, n *node.Node, kek keyring.KEK, dir string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	key, err := n.Rotate(ctx, keyring.RotateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c, err := n.Encrypt(t.Context(), []byte("new"), nil)
	if id, _ := keyring.CiphertextKeyID(c); err != nil || id != key.ID {
		t.Fatalf("under %s: %v", id, err)
	}
	keyringtest.CloseNode(t, n)
	n, _ = goldenNode(t, dir, "EdDSA", kek)
	if got, err := n.Keyring().Decrypt(c, nil); err != nil || string(got) != "new" {
		t.Errorf("%q, %v", got, err)
	}
	for _, s := range g.Sealed {
		if got, err := n.Keyring().DecryptDeprecated(s.Ciphertext, s.AAD); err != nil || !bytes.Equal(got, s.Plaintext) {
			t.Errorf("after another start, %.20q: %v", s.Plaintext, err)
		}
	}
	keyringtest.CloseNode(t, n)
}

func (g golden) checkBackup(set string) func(*testing.T) {
	return func(t *testing.T) {
		file := readFile(t, filepath.Join(set, "backup.age"))
		identity := parseIdentity(t, g.BackupKey)
		m, err := keyring.VerifyBackup(bytes.NewReader(file), identity)
		if err != nil || hex.EncodeToString(m.SHA256[:]) != g.BackupSum || m.Cluster != g.Cluster || len(m.Keys) != len(g.Keys) {
			t.Errorf("%+v, %v", m, err)
		}
		dir, kek := filepath.Join(t.TempDir(), "restored"), keyring.InlineKEK()
		_, err = node.Restore(t.Context(), bytes.NewReader(file), node.Config{Dir: dir, KEKs: []keyring.KEK{kek}, App: &keyringtest.App{}},
			keyring.RestoreOptions{Identities: []age.Identity{identity}, Digest: m.SHA256})
		if err != nil {
			t.Fatal(err)
		}
		n, host := goldenNode(t, dir, "EdDSA", kek)
		g.check(t, n)
		if got := host.Text(); got != strings.Join(g.App[:len(g.App)-1], "\n") {
			t.Errorf("the host's FSM has %q", got)
		}
		g.goOn(t, n, kek, dir)
	}
}

func (g golden) checkSnapshot(set string) func(*testing.T) {
	return func(t *testing.T) {
		b := readFile(t, filepath.Join(set, "snapshot.bin"))
		host := &keyringtest.App{}
		fsm := keyring.Mux(keyring.NewFSM(), host)
		if err := fsm.Restore(io.NopCloser(bytes.NewReader(b))); err != nil {
			t.Fatal(err)
		}
		if host.Text() != g.AppThen || g.AppThen == "" {
			t.Errorf("the host's FSM has %q, want %q", host.Text(), g.AppThen)
		}
		if again := keyringtest.SnapshotOf(t, fsm); !bytes.Equal(again, b) {
			t.Errorf("it has become\n%q\nand was\n%q", again, b)
		}
	}
}

// checkLog applies the whole log of the Node, and requires the snapshots that were made on the way, and the keys that the
// Node had. A set of this build may have refused entries: the leader moves data on its own, so that Remove comes too late
// with its command now and then, and tries again. The set that is kept has none.
func (g golden) checkLog(t *testing.T, set string) {
	dir := t.TempDir()
	unpack(t, filepath.Join(set, "node.tar.gz"), dir)
	log, err := raftboltdb.NewBoltStore(filepath.Join(dir, "raft/raft.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	want := snapshotsIn(t, filepath.Join(dir, "raft"))
	last, err := log.LastIndex()
	if err != nil {
		t.Fatal(err)
	}
	keys := keyring.NewFSM()
	fsm := keyring.Mux(keys, &keyringtest.App{})
	for i := uint64(1); i <= last; i++ {
		var l raft.Log
		if err := log.GetLog(i, &l); err != nil {
			t.Fatal(err)
		}
		if l.Type == raft.LogCommand {
			if err, is := fsm.Apply(&l).(error); is && (set == goldenDir || !errors.Is(err, meta.ErrCommandRefused)) {
				t.Errorf("entry %d: %v", i, err)
			}
		}
		if b, ok := want[i]; ok {
			if got := keyringtest.SnapshotOf(t, fsm); !bytes.Equal(got, b) {
				t.Errorf("at %d there is\n%q\nand was\n%q", i, got, b)
			}
			delete(want, i)
		}
	}
	if len(want) > 0 {
		t.Error("a snapshot is of no entry of the log")
	}
	got := map[string]goldenKey{}
	for _, k := range keyring.Ring(keys).Keys {
		got[k.ID.String()] = goldenKey{keyring.State(k.State), k.Algorithm}
	}
	if !reflect.DeepEqual(got, g.Keys) {
		t.Errorf("the log makes keys %v, want %v", got, g.Keys)
	}
}

// snapshotsIn are the two snapshots in a directory of raft's, by the index of the last entry.
func snapshotsIn(t *testing.T, dir string) map[uint64][]byte {
	t.Helper()
	snaps, err := raft.NewFileSnapshotStore(dir, 2, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	by := map[uint64][]byte{}
	list, err := snaps.List()
	if err != nil || len(list) != 2 {
		t.Fatal(list, err)
	}
	for _, m := range list {
		_, r, err := snaps.Open(m.ID)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err := errors.Join(err, r.Close()); err != nil {
			t.Fatal(err)
		}
		by[m.Index] = b
	}
	return by
}

// roundTrip is what a value is after JSON.
func roundTrip(t *testing.T, v any) (out any) {
	t.Helper()
	b, err := json.Marshal(v)
	if err == nil {
		err = json.Unmarshal(b, &out)
	}
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func writeFile(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

// replaceKeystore puts a copy of a keystore in the place of another.
func replaceKeystore(t *testing.T, dir, with string) {
	t.Helper()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(with)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries { // which a checkout may have made readable for others
		if err := os.WriteFile(filepath.Join(dir, e.Name()), readFile(t, filepath.Join(with, e.Name())), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// pack writes the files of a directory into a tar archive.
func pack(t *testing.T, dir, to string) {
	t.Helper()
	var out bytes.Buffer
	z, _ := gzip.NewWriterLevel(&out, gzip.BestCompression) // an error is about the level
	w := tar.NewWriter(z)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		b := readFile(t, path)
		if err := w.WriteHeader(&tar.Header{Name: filepath.ToSlash(name), Mode: 0o600, Size: int64(len(b))}); err != nil {
			return err
		}
		_, err = w.Write(b)
		return err
	})
	if err := errors.Join(err, w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	writeFile(t, to, out.Bytes())
}

func unpack(t *testing.T, from, dir string) {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(readFile(t, from)))
	if err != nil {
		t.Fatal(err)
	}
	r := tar.NewReader(z)
	for {
		h, err := r.Next()
		if err == io.EOF {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		path := filepath.Join(dir, filepath.FromSlash(h.Name))
		err = errors.Join(err, os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, b, 0o600))
		if err != nil {
			t.Fatal(err)
		}
	}
}

// goldens says where the golden files of each format are. Those of internal packages have tests there.
var goldens = map[string][]string{
	"raft log entries":                {"internal/meta/testdata/entries.txt", goldenDir + "/node.tar.gz"},
	"metadata in a snapshot":          {"internal/meta/testdata/snapshot.json"},
	"snapshot, with the host's part":  {goldenDir + "/snapshot.bin"},
	"messages between servers":        {"internal/peer/testdata/v1"},
	"key material, check value, file": {"internal/nks/testdata/vectors.json", "internal/nks/testdata/00112233-4455-6677-8899-aabbccddeeff.nks.json"},
	"key file, version 2":             {"internal/nks/testdata/v2"},
	"keystore under InlineKEK":        {goldenDir + "/keystore-inline"},
	"keystore under PassphraseKEK":    {goldenDir + "/keystore-passphrase"},
	"keystore under AgeKEK":           {goldenDir + "/keystore-age"},
	"keystore under FileKEK":          {goldenDir + "/node.tar.gz"},
	"keystores, version 2":            {goldenKeystores + "/keystore-file", goldenKeystores + "/keystore-inline", goldenKeystores + "/keystore-passphrase", goldenKeystores + "/keystore-age"},
	"ciphertexts":                     {"internal/seal/testdata/envelopes.json", goldenDir + "/set.json"},
	"tokens":                          {"testdata/tokens.json", goldenDir + "/set.json"},
	"backup":                          {goldenDir + "/backup.age", "testdata/v2/backup.age", "testdata/v2/backup.json"},
	"directory of a Node":             {goldenDir + "/node.tar.gz"},
	"Nomad's key files":               {"internal/nks/testdata/nomad"},
}

// TestGoldenFilesStayAsTheyAre: SHA256SUMS of testdata/v1 and v2, in the form of sha256sum, have every golden
// file, and none has changed.
func TestGoldenFilesStayAsTheyAre(t *testing.T) {
	want := map[string]string{}
	sums := append(readFile(t, goldenDir+"/SHA256SUMS"), readFile(t, "testdata/v2/SHA256SUMS")...)
	for line := range strings.Lines(string(sums)) {
		sum, name, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "  ")
		want[name] = sum
	}
	got := map[string]string{}
	for _, roots := range goldens {
		for _, root := range roots {
			err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
				if err == nil && !d.IsDir() {
					got[filepath.ToSlash(path)] = fmt.Sprintf("%x", sha256.Sum256(readFile(t, path)))
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
		}
	}
	for name, sum := range got {
		if want[name] != sum {
			t.Errorf("%s has the SHA-256 %s, not %q", name, sum, want[name])
		}
	}
	for name := range want {
		if got[name] == "" {
			t.Errorf("%s is gone", name)
		}
	}
}
