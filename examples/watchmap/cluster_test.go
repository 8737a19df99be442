package main

// Servers as processes, for the tests: how they are started, asked, killed and waited for.

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// childEnv makes the test binary a server: of the service as it is, or of before.
const childEnv = "WATCHMAP_TEST_SERVER"

func TestMain(m *testing.M) {
	build := os.Getenv(childEnv)
	if build != "" {
		go func() { // no server outlives the test
			io.Copy(io.Discard, os.Stdin)
			os.Exit(2)
		}()
	}
	switch build {
	case "now":
		main()
	case "before":
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		cfg, _, err := parse(os.Args[1:])
		d, opening := openDisk(cfg)
		if err = errors.Join(err, opening); err == nil {
			err = errors.Join(serveBefore(ctx, cfg, d), d.log.Close())
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	default:
		os.Exit(m.Run())
	}
}

// cluster is the servers of a test, each with its directory, certificate and KEK.
type cluster struct {
	t       *testing.T
	dir     string
	dirs    int // that were made in it
	ca      *x509.Certificate
	caKey   *ecdsa.PrivateKey
	servers map[string]*server
}

// server is one of them. Its process may have ended.
type server struct {
	c    *cluster
	id   string
	addr string
	dir  string
	http *http.Client
	proc *process
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{t: t, dir: t.TempDir(), servers: map[string]*server{}}
	c.caKey = newKey(t)
	c.ca = &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "watchmap CA"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	return c
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// add makes the directory of a server that is not started: its certificate, the CA's, and a KEK.
func (c *cluster) add(id string) *server {
	c.t.Helper()
	return c.addAt(id, freeAddr(c.t))
}

func (c *cluster) addAt(id, addr string) *server {
	c.t.Helper()
	s := &server{c: c, id: id, addr: addr, dir: filepath.Join(c.dir, fmt.Sprint(id, "-", c.dirs))}
	c.dirs++
	s.http = &http.Client{Transport: throughSocket(s.dir)}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		c.t.Fatal(err)
	}
	key := newKey(c.t)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		c.t.Fatal(err)
	}
	own := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: c.ca.NotBefore, NotAfter: c.ca.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature,
		URIs:        []*url.URL{{Scheme: "keyring", Host: "watchmap", Path: "/server/" + id}},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	s.write("ca.crt", "CERTIFICATE", c.sign(c.ca, c.caKey))
	s.write("tls.crt", "CERTIFICATE", c.sign(own, key))
	s.write("tls.key", "PRIVATE KEY", der)
	kek := make([]byte, 32)
	rand.Read(kek)
	if err := os.WriteFile(filepath.Join(s.dir, "kek"), kek, 0o600); err != nil {
		c.t.Fatal(err)
	}
	c.servers[id] = s
	return s
}

func (c *cluster) sign(cert *x509.Certificate, key *ecdsa.PrivateKey) []byte {
	c.t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, cert, c.ca, &key.PublicKey, c.caKey)
	if err != nil {
		c.t.Fatal(err)
	}
	return der
}

func (s *server) write(name, kind string, der []byte) {
	s.c.t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		s.c.t.Fatal(err)
	}
}

var addrs atomic.Int32 // that were given out

// freeAddr is an address at which nobody listens, and that nobody is given meanwhile: of 127.0.0.0/8, where Linux has all of it, at
// a port below those that connections are given, and by the process.
func freeAddr(t *testing.T) string {
	t.Helper()
	if pid := os.Getpid(); runtime.GOOS == "linux" && pid < 1<<22 {
		return fmt.Sprintf("127.%d.%d.%d:%d", 64+pid>>16, pid>>8&255, pid&255, 7900+addrs.Add(1))
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// initial is the flag that bootstraps a cluster of these servers.
func initial(servers ...*server) string {
	var all []string
	for _, s := range servers {
		all = append(all, s.id+"@"+s.addr)
	}
	return "-initial=" + strings.Join(all, ",")
}

// process is a server that runs, or has.
type process struct {
	cmd  *exec.Cmd
	gone chan struct{} // closed when it has ended
	err  error         // how

	mu    sync.Mutex // guards below
	lines []string   // of its output
	more  chan struct{}
}

// start starts a server, as it is or as it was before, and waits until its API answers.
func (s *server) start(build string, args ...string) {
	s.c.t.Helper()
	s.launch(build, args...)
	s.await("its start", func(line string) bool { return line == "serving" })
}

// launch starts a server.
func (s *server) launch(build string, args ...string) {
	s.c.t.Helper()
	self, err := os.Executable()
	if err != nil {
		s.c.t.Fatal(err)
	}
	p := &process{gone: make(chan struct{}), more: make(chan struct{})}
	p.cmd = exec.Command(self, append([]string{"-id", s.id, "-dir", s.dir, "-addr", s.addr}, args...)...)
	p.cmd.Env = append(os.Environ(), childEnv+"="+build)
	_, noInput := p.cmd.StdinPipe() // which ends with the test
	out, err := p.cmd.StdoutPipe()
	p.cmd.Stderr = p.cmd.Stdout
	if err = errors.Join(err, noInput); err == nil {
		err = p.cmd.Start()
	}
	if err != nil {
		s.c.t.Fatal(err)
	}
	go func() {
		for in := bufio.NewScanner(out); in.Scan(); {
			p.add(in.Text())
		}
		if p.err = p.cmd.Wait(); p.err != nil {
			p.err = fmt.Errorf("%s: %w", s.id, p.err)
		}
		close(p.gone)
	}()
	s.proc = p
	s.c.t.Cleanup(func() {
		p.cmd.Process.Kill()
		<-p.gone
		if s.c.t.Failed() {
			s.c.t.Logf("%s wrote:\n%s", s.id, strings.Join(p.lines, "\n"))
		}
	})
}

func (p *process) add(line string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lines = append(p.lines, line)
	close(p.more)
	p.more = make(chan struct{})
}

// await waits until a server has written such a line, and returns that.
func (s *server) await(what string, is func(line string) bool) string {
	s.c.t.Helper()
	p := s.proc
	for seen := 0; ; {
		p.mu.Lock()
		lines, more := p.lines, p.more
		p.mu.Unlock()
		for ; seen < len(lines); seen++ {
			if is(lines[seen]) {
				return lines[seen]
			}
		}
		select {
		case <-more:
		case <-p.gone:
			s.c.t.Fatalf("%s has ended before %s: %v", s.id, what, p.err)
		case <-s.c.t.Context().Done():
			s.c.t.Fatal(context.Cause(s.c.t.Context()))
		}
	}
}

// stop ends a server as an operator does.
func (s *server) stop() {
	s.c.t.Helper()
	if err := s.proc.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		s.c.t.Fatal(err)
	}
	if <-s.proc.gone; s.proc.err != nil {
		s.c.t.Errorf("%s has ended with %v", s.id, s.proc.err)
	}
}

// kill ends a server as a power cut does.
func (s *server) kill() {
	s.c.t.Helper()
	if err := s.proc.cmd.Process.Kill(); err != nil {
		s.c.t.Fatal(err)
	}
	<-s.proc.gone
}

// call asks a server, and decodes the answer into out unless that is nil.
func (s *server) call(method, path string, body []byte, out any) error {
	req, err := http.NewRequestWithContext(s.c.t.Context(), method, "http://watchmap"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := s.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(strings.TrimSpace(string(got)))
	}
	if err == nil && out != nil {
		err = json.Unmarshal(got, out)
	}
	if err != nil {
		return fmt.Errorf("%s: %s %s: %w", s.id, method, path, err)
	}
	return nil
}

func (s *server) do(method, path string, body []byte, out any) {
	s.c.t.Helper()
	if err := s.call(method, path, body, out); err != nil {
		s.c.t.Fatal(err)
	}
}

// leader waits until a server knows of a leader that is not the one of that ID, and returns the leader.
func (s *server) leader(not string) *server {
	s.c.t.Helper()
	var id string
	s.do("GET", "/leader?not="+not, nil, &id)
	return s.c.servers[id]
}
