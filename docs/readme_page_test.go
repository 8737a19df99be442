package docs_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/gate"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/node"
	"example.com/keyring/port"
	"github.com/hashicorp/raft"
)

// The functions below hold the README's snippets to the letter, and run them.

// readmePageAlone runs one server, which has encrypted and decrypted when it calls use.
func readmePageAlone(ctx context.Context, dir string, kek keyring.KEK, use func(n *node.Node, sealed []byte) error) error {
	n, err := node.Start(ctx, node.Config{Dir: dir, KEKs: []keyring.KEK{kek}})
	if err != nil {
		return err
	}
	defer n.Close()
	sealed, err := n.Encrypt(ctx, []byte("secret"), []byte("users/7")) // decrypts with users/7 alone
	if err != nil {
		return err
	}
	plaintext, err := n.Decrypt(ctx, sealed, []byte("users/7"))
	if err != nil || string(plaintext) != "secret" {
		return errors.Join(err, errors.New("it does not decrypt"))
	}
	return use(n, sealed)
}

// readmePageThree is the configuration of a server.
func readmePageThree(id raft.ServerID, dir string, kek keyring.KEK, addrs map[raft.ServerID]string, certificates func() (*tls.Config, error)) node.Config {
	cfg := node.Config{
		Dir: dir, KEKs: []keyring.KEK{kek}, ID: id, Addr: addrs[id], Peers: addrs,
		Cluster: "prod", TLS: certificates, // as from keyring.TLSFiles
	}
	return cfg
}

// readmePagePort runs a server of a host that has a raft. It stores and decrypts a secret.
func readmePagePort(ctx context.Context, conf *raft.Config, addr, dir string, kek keyring.KEK, certificates func() (*tls.Config, error)) (err error) {
	store, snapshots := raft.NewInmemStore(), raft.NewInmemSnapshotStore()
	logs, stable := store, store
	var app *secrets
	newApp := func(keys *keyring.FSM) raft.FSM {
		app = &secrets{keys: keys}
		return app
	}
	first := raft.Configuration{Servers: []raft.Server{{ID: conf.LocalID, Address: raft.ServerAddress(addr)}}}
	_, none := raft.NewInmemTransport(raft.ServerAddress(addr))
	if err := raft.BootstrapCluster(conf, logs, stable, snapshots, none, first); err != nil {
		return err
	}
	p, err := port.Listen(port.Config{ID: conf.LocalID, Cluster: "prod", Addr: addr, TLS: certificates})
	if err != nil {
		return err
	}
	keys := keyring.NewFSM()
	fsm := keyring.Mux(keys, newApp(keys)) // your FSM: its Apply calls keys.Admit for each ciphertext
	// At the first start call raft.BootstrapCluster here, or on a later server p.Join.
	r, err := raft.NewRaft(conf, fsm, logs, stable, snapshots, p.RaftTransport(logs, keys))
	if err != nil {
		return err
	}
	k, err := p.Open(ctx, keyring.Config{Dir: dir, Raft: r, FSM: keys, KEKs: []keyring.KEK{kek}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, k.Close(), r.Shutdown().Error(), p.Close()) }()
	if err := k.WaitReady(ctx); err != nil {
		return err
	}
	old, err := k.Encrypt([]byte("secret"), nil)
	if err != nil {
		return err
	}
	if err := r.Apply(old, time.Minute).Error(); err != nil {
		return err
	}
	if got, err := k.Decrypt(app.stored[0], nil); err != nil || string(got) != "secret" {
		return errors.Join(err, errors.New("it does not decrypt"))
	}
	if _, err := k.Rotate(ctx, keyring.RotateOptions{}); err != nil {
		return err
	}
	late := r.Apply(old, time.Minute)
	if err := late.Error(); err != nil {
		return err
	}
	if err, _ := late.Response().(error); !errors.Is(err, keyring.ErrStaleKey) {
		return errors.New("Admit takes a ciphertext of a key that is not active")
	}
	return nil
}

// secrets is the FSM of a host that stores ciphertexts.
type secrets struct {
	keys   *keyring.FSM
	stored [][]byte
}

func (s *secrets) Apply(l *raft.Log) any {
	if err := s.keys.Admit(l.Data); err != nil {
		return err // ErrStaleKey: the writer seals again and retries
	}
	s.stored = append(s.stored, l.Data)
	return nil
}

func (s *secrets) Snapshot() (raft.FSMSnapshot, error) { return nil, errors.New("not in a test") }
func (s *secrets) Restore(io.ReadCloser) error         { return errors.New("not in a test") }

// readmePageTransport opens the keyring of a host that has a transport.
func readmePageTransport(ctx context.Context, conf *raft.Config, r *raft.Raft, keys *keyring.FSM, dir string, kek keyring.KEK, peers keyring.Transport) error {
	k, err := keyring.Open(ctx, keyring.Config{
		ID: conf.LocalID, Dir: dir, Raft: r, FSM: keys, KEKs: []keyring.KEK{kek},
		Transport: peers, // calls another server, which hands the request to its ServePeer
	})
	if err != nil {
		return err
	}
	return errors.Join(k.WaitReady(ctx), k.Close())
}

// readmePageToken signs and verifies a token, and serves the keys.
func readmePageToken(ctx context.Context, n *node.Node, mux *http.ServeMux) error {
	var claims struct {
		Subject string `json:"sub"`
	}
	token, err := n.Sign(ctx, map[string]any{"sub": "job/web", "aud": "db.example"})
	if err != nil {
		return err
	}
	err = n.Keyring().Verify(token, keyring.Expect{Audience: []string{"db.example"}}, &claims)
	mux.Handle("/.well-known/", n.Keyring().WellKnown()) // discovery and JWKS, on every server
	if err == nil && claims.Subject != "job/web" {
		return errors.New("not what was signed")
	}
	return err
}

// countingKEK counts what it is asked.
type countingKEK struct {
	keyring.KEK
	asked atomic.Int64
}

func (k *countingKEK) Wrap(ctx context.Context, plaintext, aad []byte) ([]byte, error) {
	k.asked.Add(1)
	return k.KEK.Wrap(ctx, plaintext, aad)
}

func (k *countingKEK) Unwrap(ctx context.Context, wrapped, aad []byte) ([]byte, error) {
	k.asked.Add(1)
	return k.KEK.Unwrap(ctx, wrapped, aad)
}

// TestReadmeServerAlone does what the README shows of one, and asks its KEK for no message.
func TestReadmeServerAlone(t *testing.T) {
	kek := &countingKEK{KEK: keyring.InlineKEK()}
	err := readmePageAlone(t.Context(), t.TempDir(), kek, func(n *node.Node, sealed []byte) error {
		if _, err := n.Decrypt(t.Context(), sealed, []byte("users/8")); !errors.Is(err, keyring.ErrDecrypt) {
			t.Errorf("with users/8: %v", err)
		}
		if err := n.AddServer(t.Context(), "s2", "127.0.0.1:7900"); err == nil || !strings.Contains(err.Error(), "no port") {
			t.Errorf("it grows: %v", err)
		}
		mux := http.NewServeMux()
		if err := readmePageToken(t.Context(), n, mux); err != nil {
			t.Error(err)
		}
		before := kek.asked.Load()
		for range 100 {
			sealed, err := n.Encrypt(t.Context(), []byte("secret"), nil)
			if err != nil {
				return err
			}
			if _, err := n.Decrypt(t.Context(), sealed, nil); err != nil {
				return err
			}
		}
		if asked := kek.asked.Load() - before; before == 0 || asked != 0 {
			t.Errorf("the KEK was asked %d times before 100 messages, and %d times for them", before, asked)
		}
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequest("GET", "/.well-known/jwks.json", nil))
		if id := n.Keyring().Keys()[0].ID.String(); w.Code != http.StatusOK || !strings.Contains(w.Body.String(), id) {
			t.Errorf("%d, %s does not have %s", w.Code, w.Body, id)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// TestReadmeThreeServers: each encrypts and rotates, whichever leads, and what one has encrypted another decrypts.
func TestReadmeThreeServers(t *testing.T) {
	ctx := keyringtest.UntilKilled(t)
	ca, addrs, listeners := keyringtest.NewCA(t), map[raft.ServerID]string{}, map[raft.ServerID]func(*node.Config){}
	for _, id := range []raft.ServerID{"s1", "s2", "s3"} {
		ln := keyringtest.Listen(t)
		addrs[id], listeners[id] = ln.Addr().String(), func(cfg *node.Config) { cfg.Listener = ln }
	}
	nodes, errs := map[raft.ServerID]*node.Node{}, map[raft.ServerID]error{}
	var started sync.WaitGroup
	var mu sync.Mutex // guards nodes and errs while they start
	for id := range addrs {
		cfg := readmePageThree(id, t.TempDir(), keyring.InlineKEK(), addrs, ca.Source("keyring://prod/server/"+string(id), nil))
		listeners[id](&cfg)
		started.Go(func() {
			n, err := node.Start(ctx, cfg)
			mu.Lock()
			defer mu.Unlock()
			if errs[id] = err; err == nil {
				nodes[id] = n
			}
		})
	}
	started.Wait()
	for _, n := range nodes {
		defer n.Close()
	}
	for id := range addrs {
		if errs[id] != nil {
			t.Fatalf("%s: %v", id, errs[id])
		}
	}
	for id, n := range nodes {
		if _, err := n.Rotate(ctx, keyring.RotateOptions{}); err != nil {
			t.Errorf("%s: %v", id, err)
		}
		sealed, err := n.Encrypt(ctx, []byte(id), nil)
		if err != nil {
			t.Errorf("%s: %v", id, err)
		}
		for other, n := range nodes {
			if got, err := n.Decrypt(ctx, sealed, nil); err != nil || string(got) != string(id) {
				t.Errorf("%s has encrypted, %s decrypts: %q, %v", id, other, got, err)
			}
		}
	}
}

// TestReadmeServerWithARaftOfItsOwn, with a port and with a transport.
func TestReadmeServerWithARaftOfItsOwn(t *testing.T) {
	conf := raft.DefaultConfig()
	conf.LocalID, conf.Logger = "s1", keyringtest.Logger()
	ln := keyringtest.Listen(t)
	addr := ln.Addr().String()
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	certificates := keyringtest.NewCA(t).Source("keyring://prod/server/s1", nil)
	if err := readmePagePort(t.Context(), conf, addr, t.TempDir(), keyring.InlineKEK(), certificates); err != nil {
		t.Errorf("with a port: %v", err)
	}

	keys, store := keyring.NewFSM(), raft.NewInmemStore()
	local, transport := raft.NewInmemTransport("s1")
	r, err := raft.NewRaft(conf, keys, store, store, raft.NewInmemSnapshotStore(), transport)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := r.Shutdown().Error(); err != nil {
			t.Error(err)
		}
	}()
	first := raft.Configuration{Servers: []raft.Server{{ID: "s1", Address: local}}}
	if err := r.BootstrapCluster(first).Error(); err != nil {
		t.Fatal(err)
	}
	if err := readmePageTransport(t.Context(), conf, r, keys, t.TempDir(), keyring.InlineKEK(), nil); err != nil {
		t.Errorf("with a transport: %v", err)
	}
}

// TestReadmeIsShort: it is read in minutes.
func TestReadmeIsShort(t *testing.T) {
	text := heldBy.ReplaceAllString(keyringtest.Pages(t)["README.md"], "")
	if n := strings.Count(text, "\n"); n > 200 || n < 100 {
		t.Errorf("%d lines", n)
	}
	for line := range strings.Lines(text) {
		if n := len([]rune(strings.TrimSpace(line))); n > 100 && !strings.HasPrefix(line, "|") {
			t.Errorf("a line of %d letters: %s", n, line)
		}
	}
}

// TestReadmeSectionsAreHeld: each names a test or has a snippet, but the one of links.
func TestReadmeSectionsAreHeld(t *testing.T) {
	sections := strings.Split(keyringtest.Pages(t)["README.md"], "\n## ")
	for i, section := range sections {
		title, _, _ := strings.Cut(section, "\n")
		if held := heldBy.MatchString(section) || strings.Contains(section, "<!-- snippet: "); held == (title == "More") {
			t.Errorf("section %d, %q: held: %t", i, title, held)
		}
	}
	if len(sections) < 9 {
		t.Errorf("%d sections", len(sections))
	}
}

// TestReadmeRequirementsAreThoseOfTheBuild: the versions of go.mod and .ci/hosts, the platforms of .ci/run, and its licence.
func TestReadmeRequirementsAreThoseOfTheBuild(t *testing.T) {
	readme := strings.Join(strings.Fields(keyringtest.Pages(t)["README.md"]), " ")
	mod, ci, hosts := repositoryFile(t, "go.mod"), repositoryFile(t, ".ci/run"), repositoryFile(t, ".ci/hosts")
	find := func(text, pattern string) string {
		t.Helper()
		m := regexp.MustCompile(pattern).FindStringSubmatch(text)
		if m == nil {
			t.Fatalf("no %s", pattern)
		}
		return m[1]
	}
	want := "Go " + find(mod, `(?m)^go (\d+\.\d+)`) + " on Unix"
	older, newer := find(mod, `hashicorp/raft (v\S+)`), find(hosts, `newer=(v\S+)`)
	platforms := strings.Fields(find(ci, `for platform in (.*); do`))
	withoutNode := []string{"linux/riscv64", "linux/loong64"}
	for _, s := range append(platforms, want, "raft "+older+", or "+newer, "With raft "+newer+" it is") {
		if !strings.Contains(readme, s) {
			t.Errorf("the README does not have %q", s)
		}
	}
	for _, m := range regexp.MustCompile(`\b(?:linux|darwin|freebsd|windows)/\w+`).FindAllString(readme, -1) {
		if m != "linux/amd64" && !slices.Contains(platforms, m) && !slices.Contains(withoutNode, m) {
			t.Errorf(".ci/run does not check %s", m)
		}
	}
	for _, platform := range withoutNode { // the log store of a Node has a file for each architecture that it knows
		if !strings.Contains(readme, platform) {
			t.Errorf("the README does not have %s", platform)
		}
		list := exec.Command("go", "list", "-f", "{{join .GoFiles \" \"}}", "github.com/boltdb/bolt")
		list.Env = append(list.Environ(), "GOOS=linux", "GOARCH="+path.Base(platform))
		out, err := list.Output()
		if err != nil || strings.Contains(string(out), "bolt_"+path.Base(platform)) || !strings.Contains(string(out), "bolt_linux") {
			t.Errorf("%s: %s, %v", platform, out, err)
		}
	}
	licences, err := filepath.Glob(filepath.Join(keyringtest.Root(t), "LICEN[CS]E*"))
	if says := strings.Contains(readme, "has no licence"); err != nil || says != (len(licences) == 0) {
		t.Errorf("the README says that there is no licence: %t; there are %v, %v", says, licences, err)
	}
}

// TestReadmeCommandsAreThoseOfTheCI, which runs them on a module with nothing but an import.
func TestReadmeCommandsAreThoseOfTheCI(t *testing.T) {
	ci := strings.ReplaceAll(repositoryFile(t, ".ci/run"), `"`, "")
	lines := append(commands(t, "README.md", "try"), commands(t, "README.md", "module")...)
	for _, m := range regexp.MustCompile("`(go run [^`]+)`").FindAllStringSubmatch(keyringtest.Pages(t)["README.md"], -1) {
		lines = append(lines, m[1])
	}
	for _, line := range lines {
		line = strings.ReplaceAll(line, "/path/to/it", "$here")
		if !strings.Contains(ci, "\n\t"+line+"\n") && !strings.Contains(ci, "step "+line+"\n") {
			t.Errorf(".ci/run does not run %s", line)
		}
	}
	if len(lines) != 5 {
		t.Errorf("%d commands", len(lines))
	}
}

// TestReadmeFigures: what the README says of times and counts is what the code has.
func TestReadmeFigures(t *testing.T) {
	if raft.DefaultConfig().LeaderLeaseTimeout != time.Second/2 || gate.Grace != time.Second/4 {
		t.Errorf("a lease of %v, and %v of grace", raft.DefaultConfig().LeaderLeaseTimeout, gate.Grace)
	}
	checkFigures(t, []figure{
		{"README.md", "for its lease, half a second"},
		{"README.md", fmt.Sprintf("Encryption adds %d bytes", keyring.Overhead)},
		{"README.md", "at most a quarter of a second later"},
	})
}

// indexQuestions are the entries of docs/README.md: a question in a link.
var indexQuestions = regexp.MustCompile(`(?m)^- \[([^]]+)\]\(([^)]+)\)`)

// TestIndexAnswersQuestions: each question has one place, with its section, and each page is the answer to some question.
func TestIndexAnswersQuestions(t *testing.T) {
	pages := keyringtest.Pages(t)
	text := pages["docs/README.md"]
	found := indexQuestions.FindAllStringSubmatch(text, -1)
	if items := strings.Count(text, "\n- "); len(found) != items || items < 40 {
		t.Errorf("%d of %d entries are a question in a link", len(found), items)
	}
	asked, answers := map[string]bool{}, map[string]bool{}
	for _, m := range found {
		file, section, _ := strings.Cut(m[2], "#")
		if section == "" {
			t.Errorf("%q leads to a page and to no section: %s", m[1], m[2])
		}
		if asked[m[1]] {
			t.Errorf("%q is there twice", m[1])
		}
		asked[m[1]], answers[path.Join("docs", file)] = true, true
	}
	for page := range pages {
		if own := path.Dir(page) == "docs" || path.Dir(page) == "." || page == "examples/controlplane/README.md"; own && page != "docs/README.md" && !answers[page] {
			t.Errorf("no question leads to %s", page)
		}
	}
}

// TestIndexHasTheErrors: those that the packages keyring and records export, but three that say all there is to know.
func TestIndexHasTheErrors(t *testing.T) {
	_, names, _ := strings.Cut(keyringtest.Pages(t)["docs/README.md"], "\n## Names\n")
	exported := map[string]bool{"ErrOverlap": true, "ErrClosed": true, "ErrNotFound": true}
	for _, name := range []string{"errors.go", "members.go", "records/records.go"} {
		for _, m := range regexp.MustCompile(`(?m)^(?:\t|var )(Err\w+) += `).FindAllStringSubmatch(repositoryFile(t, name), -1) {
			if !strings.Contains(names, "`"+m[1]+"`") && !exported[m[1]] {
				t.Errorf("the index does not have %s", m[1])
			}
			exported[m[1]] = true
		}
	}
	for _, m := range regexp.MustCompile("`(Err\\w+)`").FindAllStringSubmatch(names, -1) {
		if !exported[m[1]] {
			t.Errorf("there is no %s", m[1])
		}
	}
}

// repositoryFile is the text of a file of the repository.
func repositoryFile(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(keyringtest.Root(t), filepath.FromSlash(name)))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
