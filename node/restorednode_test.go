package node_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/node"
	"filippo.io/age"
	"github.com/hashicorp/raft"
)

// isAbsent wants nothing at all to be at a path, not even a directory.
func isAbsent(t *testing.T, what, path string) {
	t.Helper()
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s: there is %v (%v)", what, keyringtest.FilesIn(t, path), err)
	}
}

// TestRestoreWritesNothingBeforeItKnowsThatItCan: Start would take what it left for a new server's directory, and found a cluster in it.
func TestRestoreWritesNothingBeforeItKnowsThatItCan(t *testing.T) {
	t.Parallel()
	file, m, identity := keyringtest.SmallBackup(t)
	digest := keyring.RestoreOptions{Identities: []age.Identity{identity}, Digest: m.SHA256}
	with := func(change func(*keyring.RestoreOptions)) keyring.RestoreOptions {
		o := digest
		change(&o)
		return o
	}
	for name, c := range map[string]struct {
		file []byte
		o    keyring.RestoreOptions
		kek  keyring.KEK
	}{
		"another identity": {file, with(func(o *keyring.RestoreOptions) { o.Identities = []age.Identity{kektest.Identity(t)} }), nil},
		"no identity":      {file, with(func(o *keyring.RestoreOptions) { o.Identities = nil }), nil},
		"no backup":        {[]byte("nothing"), digest, nil},
		"a part of one":    {file[:len(file)-1], digest, nil},
		"another digest":   {file, with(func(o *keyring.RestoreOptions) { o.Digest[0]++ }), nil},
		"nobody's":         {file, with(func(o *keyring.RestoreOptions) { o.Digest = [32]byte{} }), nil},
		"another cluster":  {file, with(func(o *keyring.RestoreOptions) { o.Cluster = "a" }), nil},
		"too large":        {file, with(func(o *keyring.RestoreOptions) { o.MaxBytes = 1 }), nil},
		"a KEK that fails": {file, digest, kektest.NewDown("broken")},
	} {
		kek := c.kek
		if kek == nil {
			kek = keyring.InlineKEK()
		}
		for _, parent := range []string{"", "a/b"} {
			base := t.TempDir()
			dir := filepath.Join(base, parent, "node")
			cfg := node.Config{Dir: dir, KEKs: []keyring.KEK{kek}}
			if _, err := node.Restore(t.Context(), bytes.NewReader(c.file), cfg, c.o); err == nil {
				t.Errorf("%s: a node is restored", name)
			}
			isAbsent(t, name+": node", filepath.Join(base, "a"))
			isAbsent(t, name+": node", dir)
			o := c.o
			o.Dir, o.KEKs = filepath.Join(dir, "keystore"), cfg.KEKs
			if _, err := keyring.Restore(t.Context(), bytes.NewReader(c.file), o); err == nil {
				t.Errorf("%s: restored", name)
			}
			isAbsent(t, name, dir)
		}
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, "raft"), 0o700); err != nil { // of a start that was ended in time
			t.Fatal(err)
		}
		cfg := node.Config{Dir: dir, KEKs: []keyring.KEK{kek}}
		if _, err := node.Restore(t.Context(), bytes.NewReader(c.file), cfg, c.o); err == nil || len(keyringtest.FilesIn(t, dir)) > 0 {
			t.Errorf("%s: %v, and it has left %v", name, err, keyringtest.FilesIn(t, dir))
		}
	}
}

// TestRestoreNodeWantsTheHostsFSM: without it the host's part of the snapshot would have no reader, and no
// start would succeed.
func TestRestoreNodeWantsTheHostsFSM(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	b := keyringtest.BackUp(ctx, t, 1)
	cfg := node.Config{Dir: filepath.Join(t.TempDir(), "node"), KEKs: []keyring.KEK{keyring.InlineKEK()}}
	_, err := node.Restore(ctx, bytes.NewReader(b.File), cfg, keyring.RestoreOptions{Identities: []age.Identity{b.Identity}, Digest: b.Manifest.SHA256})
	if err == nil || !strings.Contains(err.Error(), "no App") {
		t.Errorf("%v", err)
	}
	isAbsent(t, "without an App", cfg.Dir)
	if b.Manifest.Host == 0 {
		t.Error("the backup has no part of the host's")
	}
}

// failingKEK fails once it has wrapped so many times.
type failingKEK struct {
	keyring.KEK
	left int
}

func (f *failingKEK) Wrap(ctx context.Context, plaintext, aad []byte) ([]byte, error) {
	if f.left--; f.left < 0 {
		return nil, kektest.ErrDown
	}
	return f.KEK.Wrap(ctx, plaintext, aad)
}

// TestInterruptedRestoreNodeIsDoneAgain, and until it is no cluster is bootstrapped from what is there.
func TestInterruptedRestoreNodeIsDoneAgain(t *testing.T) {
	t.Parallel()
	file, m, identity := keyringtest.SmallBackup(t)
	o := keyring.RestoreOptions{Identities: []age.Identity{identity}, Signer: m.Signer}
	cfg := node.Config{Dir: filepath.Join(t.TempDir(), "node"), Tokens: keyring.TokenPolicy{Algorithm: "EdDSA"}}
	kek := kektest.File(t, kektest.CountingKey())
	for left := 1; ; left++ { // the probe of the KEK wraps too
		cfg.KEKs = []keyring.KEK{&failingKEK{kek, left}}
		_, err := node.Restore(t.Context(), bytes.NewReader(file), cfg, o)
		if err == nil {
			break
		}
		if !errors.Is(err, kektest.ErrDown) || left > 20 {
			t.Fatal(err)
		}
		if len(keyringtest.KeyFilesIn(t, filepath.Join(cfg.Dir, "keystore"))) > 0 {
			startIsRefused(t, cfg)
		}
	}
	if n := len(keyringtest.KeyFilesIn(t, filepath.Join(cfg.Dir, "keystore"))); n != len(m.Keys) {
		t.Errorf("%d keys", n)
	}
	cfg.KEKs = []keyring.KEK{kek}
	keyringtest.CheckGoesOn(t, "restored at last", cfg)
}

func startIsRefused(t *testing.T, cfg node.Config) {
	t.Helper()
	n, err := node.Start(t.Context(), cfg)
	if err == nil || !strings.Contains(err.Error(), "node.Restore has not finished") {
		t.Errorf("started: %v", err)
	}
	if err == nil {
		n.Close()
	}
}

// breaks is a reader that is at its end too early.
type breaks struct {
	io.Reader
	at func()
}

func (b breaks) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err == io.EOF {
		b.at()
	}
	return n, err
}

// TestRestoreNodeThatIsKilledIsDoneAgain: what a process leaves that dies while the host's part comes in is no
// server's directory.
func TestRestoreNodeThatIsKilledIsDoneAgain(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	b := keyringtest.BackUp(ctx, t, 1)
	b.Put(ctx, "long", strings.Repeat("long ", 100_000)) // so that it is not read at once
	var file bytes.Buffer
	m, err := b.Leader().Keyring().Backup(ctx, &file, b.Identity.Recipient())
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(t.TempDir(), "node")
	cfg := node.Config{Dir: filepath.Join(t.TempDir(), "node"), KEKs: []keyring.KEK{keyring.InlineKEK()}, App: &keyringtest.App{}}
	r := breaks{bytes.NewReader(file.Bytes()), func() { // all has been read, and nothing is whole yet
		if err := os.CopyFS(copied, os.DirFS(cfg.Dir)); err != nil {
			t.Error(err)
		}
	}}
	o := keyring.RestoreOptions{Identities: []age.Identity{b.Identity}, Digest: [32]byte{1}}
	if _, err := node.Restore(ctx, r, cfg, o); err == nil {
		t.Fatal("restored with another digest")
	}
	isAbsent(t, "another digest", cfg.Dir)
	cfg.Dir = copied
	startIsRefused(t, cfg)
	o.Digest = m.SHA256
	b.Configure(&cfg)
	if _, err := node.Restore(ctx, bytes.NewReader(file.Bytes()), cfg, o); err != nil {
		t.Fatal(err)
	}
	torn, err := filepath.Glob(filepath.Join(copied, "raft", "snapshots", "*.tmp"))
	if err != nil || len(torn) > 0 {
		t.Errorf("%v is left, %v", torn, err)
	}
	mark := filepath.Join(copied, "raft", "restore.unfinished")
	isAbsent(t, "restored", mark)
	if err := os.WriteFile(mark, nil, 0o600); err != nil { // a crash before it was removed
		t.Fatal(err)
	}
	n, err := node.Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
}

// TestNothingIsMadeWhereThereIsNothing to recover, or to join.
func TestNothingIsMadeWhereThereIsNothing(t *testing.T) {
	cfg := (&keyringtest.Nodes{TB: t, CA: keyringtest.NewCA(t), Addrs: map[raft.ServerID]string{"s1": "127.0.0.1:0"}}).Config("s1")
	cfg.Dir = filepath.Join(t.TempDir(), "node")
	if r, err := node.Recover(t.Context(), cfg); err == nil {
		t.Errorf("recovered %+v", r)
	}
	isAbsent(t, "recover", cfg.Dir)
	if _, err := node.Start(t.Context(), cfg); err == nil {
		t.Error("started with nobody to join")
	}
	isAbsent(t, "start", cfg.Dir)
}

// TestRestoreIsRefusedInFIPSOnly, before anything is written. It runs itself in a process that allows nothing
// else.
func TestRestoreIsRefusedInFIPSOnly(t *testing.T) {
	if os.Getenv("KEYRING_TEST_FIPS") != "" {
		dir := filepath.Join(t.TempDir(), "node")
		cfg := node.Config{Dir: dir, KEKs: []keyring.KEK{keyring.InlineKEK()}}
		o := keyring.RestoreOptions{Identities: []age.Identity{nil}, Unauthenticated: true}
		_, err := node.Restore(t.Context(), strings.NewReader(""), cfg, o)
		fmt.Println(err)
		o.Dir, o.KEKs = dir, cfg.KEKs
		_, err = keyring.Restore(t.Context(), strings.NewReader(""), o)
		fmt.Println(err)
		isAbsent(t, "FIPS", dir)
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestRestoreIsRefusedInFIPSOnly$", "-test.v")
	cmd.Env = append(os.Environ(), "GODEBUG=fips140=only", "KEYRING_TEST_FIPS=1")
	out, err := cmd.CombinedOutput()
	if err != nil || strings.Count(string(out), "not allowed in FIPS 140-only mode") != 2 || !strings.Contains(string(out), "--- PASS") {
		t.Errorf("%v: %s", err, out)
	}
}

// besideCluster is a cluster of three that has a backup, and s3 of which is stopped: it is restored, or recovered, in
// directories of its own.
type besideCluster struct {
	*keyringtest.BackedUp
	t   *testing.T
	ctx context.Context
}

func newBesideCluster(t *testing.T, ctx context.Context) besideCluster {
	t.Helper()
	b := keyringtest.BackUp(ctx, t, 3)
	for len(b.Apps["s3"].Copy()) < len(b.Texts) { // it has what it would be recovered from
		b.Put(ctx, "more", "so that it learns of what has committed")
	}
	if err := b.Nodes.Nodes["s3"].Close(); err != nil {
		t.Fatal(err)
	}
	delete(b.Nodes.Nodes, "s3")
	return besideCluster{b, t, ctx}
}

func (b besideCluster) config() node.Config {
	cfg := b.Config("s3")
	b.Configure(&cfg)
	return cfg
}

func (b besideCluster) restore(cfg node.Config, o keyring.RestoreOptions) error {
	cfg.Dir = filepath.Join(b.t.TempDir(), "node")
	_, err := node.Restore(b.ctx, bytes.NewReader(b.File), cfg, o)
	if err != nil {
		isAbsent(b.t, "restore", cfg.Dir)
	}
	return err
}

func (b besideCluster) recover(cfg node.Config, o ...node.RecoverOptions) error {
	dir := filepath.Join(b.t.TempDir(), "node")
	if err := os.CopyFS(dir, os.DirFS(cfg.Dir)); err != nil {
		b.t.Fatal(err)
	}
	cfg.Dir = dir
	_, err := node.Recover(b.ctx, cfg, o...)
	return err
}

// names wants an error to name all of the addresses.
func (b besideCluster) names(what string, err error, addrs ...string) {
	b.t.Helper()
	for _, addr := range addrs {
		if err == nil || !strings.Contains(err.Error(), addr) {
			b.t.Errorf("%s: %v, want %s to be named", what, err, addr)
		}
	}
}

// rejecting is an address at which somebody closes every connection: one whose certificate has ended, say.
func rejecting(t *testing.T, addr string) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	return ln
}

// TestNoSecondClusterIsMadeWhileTheFirstAnswers: two of them would both take writes.
func TestNoSecondClusterIsMadeWhileTheFirstAnswers(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	b := newBesideCluster(t, ctx)
	o := keyring.RestoreOptions{Identities: []age.Identity{b.Identity}, Digest: b.Manifest.SHA256}
	peers, join := b.config(), b.config()
	peers.Peers, join.Join = b.Addrs, []string{b.Addrs["s2"]}
	b.names("restore beside Peers", b.restore(peers, o), b.Addrs["s1"], b.Addrs["s2"])
	b.names("restore beside Join", b.restore(join, o), b.Addrs["s2"])
	b.names("restore beside those of the backup", b.restore(b.config(), o), b.Addrs["s1"], b.Addrs["s2"])
	b.names("recover", b.recover(b.config()), b.Addrs["s1"], b.Addrs["s2"])
	drill := o
	drill.DataOnly = true
	if err := b.restore(b.config(), drill); err != nil {
		t.Errorf("another cluster is restored: %v", err)
	}
	forced := o
	forced.Force = true
	if err := b.restore(peers, forced); err != nil {
		t.Errorf("forced: %v", err)
	}
	if err := b.recover(peers, node.RecoverOptions{Force: true}); err != nil {
		t.Errorf("forced: %v", err)
	}
	b.Nodes.Close()
	clear(b.Nodes.Nodes)
	ln := rejecting(t, b.Addrs["s1"])
	b.names("restore beside what can't be told", b.restore(peers, o), b.Addrs["s1"])
	ln.Close()
	if err := b.restore(peers, o); err != nil {
		t.Errorf("all are gone: %v", err)
	}
	if err := b.recover(b.config()); err != nil {
		t.Errorf("all are gone: %v", err)
	}
}

// TestServersThatWaitForACluster are none: they may be started before it is restored.
func TestServersThatWaitForACluster(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	b := keyringtest.BackUp(ctx, t, 1)
	b.Nodes.Close()
	clear(b.Nodes.Nodes)
	ln := keyringtest.Listen(t)
	b.Addrs["s2"], b.Dirs["s2"] = ln.Addr().String(), t.TempDir()
	waiting := b.Config("s2")
	waiting.Listener, waiting.Peers = ln, b.Addrs
	started := make(chan error, 1)
	go func() {
		n, err := node.Start(ctx, waiting)
		if err == nil {
			err = n.Close()
		}
		started <- err
	}()
	b.Dirs["s1"] = filepath.Join(t.TempDir(), "node")
	first := b.Config("s1")
	b.Configure(&first)
	first.Peers = b.Addrs
	_, err := node.Restore(ctx, bytes.NewReader(b.File), first, keyring.RestoreOptions{Identities: []age.Identity{b.Identity}, Digest: b.Manifest.SHA256})
	if err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-started; err == nil {
		t.Error("it has found a cluster")
	}
}

// TestServerIsNotRestoredBesideItself: the server whose place the new one is to take has its ID, and lives on
// at the address that it had.
func TestServerIsNotRestoredBesideItself(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	b := keyringtest.BackUp(ctx, t, 1)
	old := b.Addrs["s1"]
	moved := b.Config("s1")
	moved.Dir, moved.Addr = filepath.Join(t.TempDir(), "node"), "127.0.0.1:1"
	b.Configure(&moved)
	copied := b.Config("s1")
	copied.Dir, copied.Addr = filepath.Join(t.TempDir(), "node"), "127.0.0.1:1"
	o := keyring.RestoreOptions{Identities: []age.Identity{b.Identity}, Digest: b.Manifest.SHA256}
	if _, err := node.Restore(ctx, bytes.NewReader(b.File), moved, o); err == nil || !strings.Contains(err.Error(), old) {
		t.Errorf("restored: %v", err)
	}
	b.Nodes.Close()
	clear(b.Nodes.Nodes)
	if err := os.CopyFS(copied.Dir, os.DirFS(b.Dirs["s1"])); err != nil {
		t.Fatal(err)
	}
	first := b.Config("s1")
	b.Configure(&first)
	n, err := node.Start(ctx, first)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	b.Configure(&copied)
	if _, err := node.Recover(ctx, copied); err == nil || !strings.Contains(err.Error(), old) {
		t.Errorf("recovered: %v", err)
	}
	moved.Dir = filepath.Join(t.TempDir(), "node")
	keyringtest.CloseNode(t, n)
	b.Configure(&moved)
	if _, err := node.Restore(ctx, bytes.NewReader(b.File), moved, o); err != nil {
		t.Errorf("it is gone: %v", err)
	}
}
