package docs_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/node"
	"example.com/keyring/port"
	"example.com/keyring/records"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
)

// nodeAlone is a service without a raft, which has encrypted and decrypted when it calls use.
func nodeAlone(ctx context.Context, dir string, use func(n *node.Node, ciphertext, plaintext []byte) error) error {
	n, err := node.Start(ctx, node.Config{
		Dir:  dir,
		KEKs: []keyring.KEK{keyring.InlineKEK()}, // for a trial: the KEK is in the key file
	})
	if err != nil {
		return err
	}
	defer n.Close()
	if err := n.Keyring().WaitReady(ctx); err != nil { // there is a first key, and it is here
		return err
	}
	ciphertext, err := n.Encrypt(ctx, []byte("secret"), []byte("users/7")) // bound to the name users/7
	if err != nil {
		return err
	}
	plaintext, err := n.Decrypt(ctx, ciphertext, []byte("users/7"))
	if err != nil {
		return err
	}
	return use(n, ciphertext, plaintext)
}

// startNode starts one of three, with the files of a directory.
func startNode(ctx context.Context, dir string, id raft.ServerID, addrs map[raft.ServerID]string) (*node.Node, error) {
	file := func(ending string) string { return filepath.Join(dir, string(id)+ending) }
	ca := filepath.Join(dir, "ca.crt")
	kek, err := keyring.FileKEK(file(".kek"))
	if err != nil {
		return nil, err
	}
	return node.Start(ctx, node.Config{
		ID:      id,
		Dir:     file(".data"),
		KEKs:    []keyring.KEK{kek},
		Addr:    addrs[id], // as in 10.0.0.1:7900
		Cluster: "prod",
		TLS:     keyring.TLSFiles(file(".crt"), file(".key"), ca), // read again when they change
		Peers:   addrs,                                            // of all three, the same on each
	})
}

// freeAddrs are addresses of servers s1 to sn, which are free.
func freeAddrs(t *testing.T, n int) map[raft.ServerID]string {
	t.Helper()
	addrs := map[raft.ServerID]string{}
	for i := range n {
		ln := keyringtest.Listen(t)
		addrs[raft.ServerID(fmt.Sprintf("s%d", i+1))] = ln.Addr().String()
		if err := ln.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return addrs
}

// inParallel runs f for each server.
func inParallel(t *testing.T, addrs map[raft.ServerID]string, f func(raft.ServerID) error) {
	t.Helper()
	var wg sync.WaitGroup
	for id := range addrs {
		wg.Go(func() {
			if err := f(id); err != nil {
				t.Errorf("%s: %v", id, err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// TestNodePages runs a Node alone, and three with the certificates that the page's commands make.
func TestNodePages(t *testing.T) {
	t.Parallel()
	ctx := keyringtest.UntilKilled(t)
	err := nodeAlone(ctx, t.TempDir(), func(n *node.Node, ciphertext, plaintext []byte) error {
		if string(plaintext) != "secret" {
			t.Errorf("alone: %q", plaintext)
		}
		if _, err := n.Decrypt(ctx, ciphertext, []byte("users/8")); !errors.Is(err, keyring.ErrDecrypt) {
			t.Errorf("under another name: %v", err)
		}
		return nil
	})
	if err != nil {
		t.Errorf("alone: %v", err)
	}

	dir, addrs := makeCertificates(t), freeAddrs(t, 3)
	var nodes sync.Map
	inParallel(t, addrs, func(id raft.ServerID) error {
		n, err := startNode(ctx, dir, id, addrs)
		if err != nil {
			return err
		}
		t.Cleanup(func() { n.Close() })
		nodes.Store(id, n)
		return n.Keyring().WaitReady(ctx)
	})
	for id := range addrs {
		n, _ := nodes.Load(id)
		sealed, err := n.(*node.Node).Encrypt(ctx, []byte("secret"), nil)
		if err != nil {
			t.Fatalf("%s: %v", id, err)
		}
		for other := range addrs {
			o, _ := nodes.Load(other)
			if got, err := o.(*node.Node).Decrypt(ctx, sealed, nil); err != nil || string(got) != "secret" {
				t.Errorf("%s opens what %s was asked for: %q, %v", other, id, got, err)
			}
		}
	}
}

// passwords is the FSM of a host: ciphertexts by name.
type passwords struct {
	fsm *keyring.FSM

	mu      sync.Mutex // guards below
	of      map[string][]byte
	changed chan struct{} // closed at the next change; nil if nobody waits
}

func (s *passwords) Apply(l *raft.Log) any {
	name, ciphertext, _ := bytes.Cut(l.Data, []byte("="))
	if err := s.fsm.Admit(ciphertext); err != nil {
		return err // ErrStaleKey: EncryptTo encrypts again
	}
	s.store(string(name), ciphertext)
	return nil
}

func (s *passwords) store(name string, ciphertext []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	of := maps.Clone(s.of)
	if of == nil {
		of = map[string][]byte{}
	}
	of[name] = ciphertext
	s.set(of)
}

// set is for a caller that holds mu.
func (s *passwords) set(of map[string][]byte) {
	s.of = of
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}

func (s *passwords) get(name string) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.of[name]
}

// next returns a channel that is closed when something is stored.
func (s *passwords) next() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.changed == nil {
		s.changed = make(chan struct{})
	}
	return s.changed
}

// Snapshot implements raft.FSM.
func (s *passwords) Snapshot() (raft.FSMSnapshot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return passwordsAt(s.of), nil
}

// Restore implements raft.FSM.
func (s *passwords) Restore(r io.ReadCloser) error {
	defer r.Close()
	var of map[string][]byte
	if err := json.NewDecoder(r).Decode(&of); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.set(of)
	return nil
}

// passwordsAt is a map that nobody changes any more.
type passwordsAt map[string][]byte

func (s passwordsAt) Persist(sink raft.SnapshotSink) error {
	if err := json.NewEncoder(sink).Encode(s); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

func (passwordsAt) Release() {}

// hostServer is one server of a host with a raft of its own.
type hostServer struct {
	port    *port.Port
	raft    *raft.Raft
	keyring *keyring.Keyring
	app     *passwords
	log     *raftboltdb.BoltStore
	propose func(ctx context.Context, cmd []byte) (any, error)

	opened chan struct{} // closed when the fields above are set
}

// startHostServer starts one on a directory with its files. It has run before, is one of the initial ones, or joins members.
func startHostServer(ctx context.Context, dir string, id raft.ServerID, addr string, initial []raft.Server, members []string, token string) (*hostServer, error) {
	file := func(ending string) string { return filepath.Join(dir, string(id)+ending) }
	ca := filepath.Join(dir, "ca.crt")
	kek, err := keyring.FileKEK(file(".kek"))
	if err != nil {
		return nil, err
	}
	conf := raft.DefaultConfig()
	conf.LocalID, conf.Logger = id, hclog.NewNullLogger()
	log, err := raftboltdb.NewBoltStore(file(".log"))
	if err != nil {
		return nil, err
	}
	snapshots, err := raft.NewFileSnapshotStoreWithLogger(file(".snapshots"), 2, conf.Logger)
	if err != nil {
		return nil, err
	}

	p, err := port.Listen(port.Config{
		ID:      conf.LocalID,
		Cluster: "prod",
		Addr:    addr, // also this server's address in raft's configuration
		TLS:     keyring.TLSFiles(file(".crt"), file(".key"), ca),
	})
	if err != nil {
		return nil, err
	}
	fsm := keyring.NewFSM()
	app := &passwords{fsm: fsm} // your FSM
	transport := p.RaftTransport(log, fsm)
	s := &hostServer{port: p, app: app, log: log, opened: make(chan struct{})}
	p.Handle("/put", func(ctx context.Context, from raft.ServerID, body []byte) ([]byte, error) {
		select {
		case <-s.opened: // closed when Open has returned: before, there is no keyring
			name, plaintext, _ := bytes.Cut(body, []byte("="))
			return nil, s.put(ctx, string(name), plaintext)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	})

	used, err := raft.HasExistingState(log, log, snapshots)
	switch {
	case err != nil || used: // it has run before
	case len(initial) > 0: // the same servers on each of them
		err = raft.BootstrapCluster(conf, log, log, snapshots, transport, raft.Configuration{Servers: initial})
	default:
		err = p.Join(ctx, members, token) // members.md says what these are
	}
	if err != nil {
		return nil, err
	}
	r, err := raft.NewRaft(conf, keyring.Mux(fsm, app), log, log, snapshots, transport)
	if err != nil {
		return nil, err
	}
	k, err := p.Open(ctx, keyring.Config{
		Dir:  file(".keystore"),
		Raft: r,
		FSM:  fsm,
		KEKs: []keyring.KEK{kek},
	})
	if err != nil {
		return nil, err
	}
	s.raft, s.keyring, s.propose = r, k, records.Through(r)
	close(s.opened)
	return s, nil
}

// put stores a secret. Leader only.
func (s *hostServer) put(ctx context.Context, name string, plaintext []byte) error {
	aad := []byte(name) // the ciphertext decrypts under this name alone
	return s.keyring.EncryptTo(ctx, plaintext, aad, func(ctx context.Context, ciphertext []byte) error {
		answer, err := s.propose(ctx, slices.Concat(aad, []byte("="), ciphertext)) // records.Through(r)
		if refused, ok := answer.(error); ok {
			return refused // what Apply has returned
		}
		return err
	})
}

// forward stores a secret, on any server.
func (s *hostServer) forward(ctx context.Context, name, plaintext string) error {
	_, err := s.port.Request(ctx, "", "/put", []byte(name+"="+plaintext))
	return err
}

// reader is what a server reads with.
type reader struct {
	keyring *keyring.Keyring
	app     interface{ get(name string) []byte }
}

// read decrypts a secret, on any server.
func (s reader) read(ctx context.Context, name string) ([]byte, error) {
	for {
		changed := s.keyring.Changed()
		ciphertext := s.app.get(name)
		plaintext, err := s.keyring.Decrypt(ciphertext, []byte(name))
		switch {
		case errors.Is(err, keyring.ErrUnknownKey) && !bytes.Equal(ciphertext, s.app.get(name)):
			// it was re-encrypted after get: read it again
		case errors.Is(err, keyring.ErrKeyMissing), errors.Is(err, keyring.ErrNotReady):
			select {
			case <-changed: // this server may have fetched the key, or caught up
			case <-ctx.Done():
				return nil, err
			}
		default:
			return plaintext, err
		}
	}
}

func (s *hostServer) close(ctx context.Context) error {
	s.keyring.TransferLeadership(ctx) // on a follower this is an error, and changes nothing
	return errors.Join(s.keyring.Close(), s.raft.Shutdown().Error(), s.port.Close(), s.log.Close())
}

// opens waits until a server has applied what was stored last, and decrypts it.
func (s *hostServer) opens(ctx context.Context, name, want string) error {
	for {
		stored := s.app.next()
		var got []byte
		var err error
		if s.app.get(name) != nil {
			if got, err = (reader{s.keyring, s.app}).read(ctx, name); err != nil || string(got) == want {
				return err
			}
		}
		select {
		case <-stored:
		case <-ctx.Done():
			return fmt.Errorf("%q, %w", got, context.Cause(ctx))
		}
	}
}

// hostServers are those that run.
type hostServers map[raft.ServerID]*hostServer

// until tries until a leader is ready, as the page says: again when a server tells of a change.
func (servers hostServers) until(ctx context.Context, try func() error) error {
	for {
		cases := []reflect.SelectCase{{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(ctx.Done())}}
		for _, s := range servers {
			cases = append(cases, reflect.SelectCase{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(s.keyring.Changed())})
		}
		err := try()
		if !errors.Is(err, keyring.ErrNotLeader) && !errors.Is(err, keyring.ErrNoLeader) && !errors.Is(err, keyring.ErrNotReady) {
			return err
		}
		if i, _, _ := reflect.Select(cases); i == 0 {
			return err
		}
	}
}

// leader waits until a server leads, and returns it.
func (servers hostServers) leader(ctx context.Context, t *testing.T) (leader *hostServer) {
	t.Helper()
	err := servers.until(ctx, func() error {
		for _, s := range servers {
			if s.keyring.Leading() == nil {
				leader = s
				return nil
			}
		}
		return keyring.ErrNotReady
	})
	if err == nil {
		err = leader.keyring.WaitReady(ctx)
	}
	if err != nil {
		t.Fatal(err)
	}
	return leader
}

// TestOwnRaftStepByStep runs the host of the page: two servers bootstrap and one joins, each stores, the fence refuses what is
// late, the leader closes, and a server starts again.
func TestOwnRaftStepByStep(t *testing.T) {
	t.Parallel()
	ctx := keyringtest.UntilKilled(t)
	dir, addrs, servers := makeCertificates(t), freeAddrs(t, 3), hostServers{}
	var initial []raft.Server
	for _, id := range []raft.ServerID{"s1", "s2"} {
		initial = append(initial, raft.Server{ID: id, Address: raft.ServerAddress(addrs[id])})
	}
	start := func(id raft.ServerID, members []string, token string) {
		first := initial
		if id == "s3" {
			first = nil
		}
		s, err := startHostServer(ctx, dir, id, addrs[id], first, members, token)
		if err != nil {
			t.Fatalf("%s: %v", id, err)
		}
		servers[id] = s
	}
	ready := func(id raft.ServerID) {
		if err := servers[id].keyring.WaitReady(ctx); err != nil {
			t.Fatalf("%s: %v", id, err)
		}
	}
	defer func() {
		for id, s := range servers {
			if err := s.close(ctx); err != nil {
				t.Errorf("%s: %v", id, err)
			}
		}
	}()
	start("s1", nil, "")
	start("s2", nil, "")
	token, err := servers.leader(ctx, t).keyring.MakeJoinToken(ctx, "s3", 0)
	if err != nil {
		t.Fatal(err)
	}
	start("s3", []string{addrs["s1"], addrs["s2"]}, token)
	ready("s3")
	stored := func(at raft.ServerID, secret string) {
		t.Helper()
		err := servers.until(ctx, func() error {
			if _, leader := servers[at].raft.LeaderWithID(); servers[leader] == nil {
				return keyring.ErrNoLeader // it has not heard that the leader was closed
			}
			return servers[at].forward(ctx, "db", secret)
		})
		if err != nil {
			t.Fatalf("%s: %v", at, err)
		}
		for id, s := range servers {
			if err := s.opens(ctx, "db", secret); err != nil {
				t.Errorf("%s: %v", id, err)
			}
		}
	}
	for id := range addrs {
		stored(id, "by way of "+string(id))
	}

	leader := servers.leader(ctx, t)
	late, err := leader.keyring.Encrypt([]byte("late"), []byte("db"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := leader.keyring.Rotate(ctx, keyring.RotateOptions{}); err != nil {
		t.Fatal(err)
	}
	f := leader.raft.Apply(append([]byte("db="), late...), 0)
	if err := f.Error(); err != nil {
		t.Fatal(err)
	}
	if refused, _ := f.Response().(error); !errors.Is(refused, keyring.ErrStaleKey) {
		t.Errorf("the fence: %v", refused)
	}

	for id, s := range servers {
		if s == leader {
			delete(servers, id)
			if err := s.close(ctx); err != nil {
				t.Errorf("%s: %v", id, err)
			}
			stored(slices.Sorted(maps.Keys(servers))[0], "without "+string(id))
			start(id, nil, "")
			ready(id)
			stored(id, "with it again")
		}
	}
}

// storedInTurn gives out one ciphertext after the other, and the last one from then on.
type storedInTurn [][]byte

func (s *storedInTurn) get(string) []byte {
	now := (*s)[0]
	if len(*s) > 1 {
		*s = (*s)[1:]
	}
	return now
}

// TestReadWaitsForTheKeyAndReadsAgain what was re-encrypted meanwhile.
func TestReadWaitsForTheKeyAndReadsAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, Configure: func(_ *keyringtest.Server, cfg *keyring.Config) {
			cfg.Data = keyring.NoData{}
		}})
		leader := keyringtest.Ready(t, c)
		old, err := leader.Keyring.Encrypt([]byte("secret"), []byte("db"))
		if err != nil {
			t.Fatal(err)
		}
		f := keyringtest.Follower(c)
		first := leader.Keyring.Keys()[0].ID
		c.OnEvent(func(e keyringtest.Event) (r keyringtest.Reply) {
			if e.Kind == "call" && (e.Server == f || e.To == f.ID) {
				r.Err = errors.New("cut off")
			}
			return r
		})
		if _, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{Full: true}); err != nil {
			t.Fatal(err)
		}
		keyringtest.AwaitState(f.Keyring, first, keyring.StateDeprecated)
		sealed, err := leader.Keyring.Encrypt([]byte("secret"), []byte("db"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Keyring.Decrypt(sealed, []byte("db")); !errors.Is(err, keyring.ErrKeyMissing) {
			t.Fatalf("while the key can't come: %v", err)
		}
		var got []byte
		read := make(chan struct{})
		go func() {
			got, err = reader{f.Keyring, &storedInTurn{old, sealed}}.read(t.Context(), "db")
			close(read)
		}()
		synctest.Wait()
		select {
		case <-read:
			t.Fatalf("it has not waited: %v", err)
		default:
		}
		c.OnEvent(nil)
		if <-read; err != nil || string(got) != "secret" {
			t.Errorf("%q, %v", got, err)
		}
		if _, err := (reader{f.Keyring, &storedInTurn{old}}).read(t.Context(), "db"); !errors.Is(err, keyring.ErrUnknownKey) {
			t.Errorf("what is not stored any more: %v", err)
		}
	})
}

// direct is a keyring.Transport for tests: every server is in this process.
type direct struct {
	from    raft.ServerID
	servers *sync.Map
}

func (d direct) Call(ctx context.Context, to raft.ServerID, request []byte) ([]byte, error) {
	k, open := d.servers.Load(to) // a sync.Map of the keyrings by raft.ServerID
	if !open {
		return nil, keyring.ErrNotReady
	}
	return k.(*keyring.Keyring).ServePeer(ctx, d.from, request)
}

// TestHostTestRotates is the test of the page.
func TestHostTestRotates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, err := node.Start(t.Context(), node.Config{
			Dir: t.TempDir(), KEKs: []keyring.KEK{keyring.InlineKEK()},
			Tokens:   keyring.TokenPolicy{Algorithm: "EdDSA"}, // an RSA key takes longer to make
			Rotation: keyring.RotationPolicy{Every: time.Hour},
		})
		if err != nil {
			t.Fatal(err)
		}
		defer n.Close()
		ciphertext, err := n.Encrypt(t.Context(), []byte("secret"), nil) // waits until there is a key
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Hour) // virtual
		if len(n.Keyring().Keys()) < 2 {
			t.Error("no key was rotated")
		}
		if plaintext, err := n.Decrypt(t.Context(), ciphertext, nil); string(plaintext) != "secret" {
			t.Error(err)
		}
	})
}

// makeCertificates runs the commands of the page, which make the files of s1 to s3. Outside of CI, where there may be no OpenSSL 3,
// Go makes them then.
func makeCertificates(t *testing.T) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "myservice")
	script := strings.Join(commands(t, "docs/embedding.md", "certificates"), "\n")
	replaced := strings.ReplaceAll(script, "/tmp/myservice", dir)
	if replaced == script {
		t.Fatal("the commands do not name /tmp/myservice")
	}
	if version, err := exec.Command("openssl", "version").Output(); !bytes.HasPrefix(version, []byte("OpenSSL 3")) && os.Getenv("CI") == "" {
		t.Logf("the commands of docs/embedding.md are not tested: they need OpenSSL 3, and this is %q, %v", version, err)
		writeCertificates(t, dir)
		return dir
	}
	if out, err := exec.Command("sh", "-ec", replaced).CombinedOutput(); err != nil {
		t.Fatalf("the commands of docs/embedding.md: %v: %s", err, out)
	}
	return dir
}

// writeCertificates makes the files that the commands of the page make.
func writeCertificates(t *testing.T, dir string) {
	t.Helper()
	ca := keyringtest.NewCA(t)
	files := map[string][]byte{"ca.crt": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Cert.Raw})}
	for _, id := range []string{"s1", "s2", "s3"} {
		conf, err := ca.Source("keyring://prod/server/"+id, nil)()
		if err != nil {
			t.Fatal(err)
		}
		key, err := x509.MarshalPKCS8PrivateKey(conf.Certificates[0].PrivateKey)
		if err != nil {
			t.Fatal(err)
		}
		files[id+".crt"] = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: conf.Certificates[0].Leaf.Raw})
		files[id+".key"] = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})
		files[id+".kek"] = make([]byte, 32)
		rand.Read(files[id+".kek"])
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
