// Server is a server of the cluster under attack. Its first line of input is its setup; from then on
// it answers calls on standard input and output, and ends when its input does.
package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/rpc"
	"net/rpc/jsonrpc"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"sync/atomic"
	"time"

	"example.com/keyring"
	"example.com/keyring/node"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

func main() {
	if err := serve(); err != nil {
		fmt.Fprintln(os.Stderr, "server:", err)
		os.Exit(1)
	}
}

const callTime = 15 * time.Second // for one call: longer than an election

// setup is the first line that a server reads.
type setup struct {
	ID            raft.ServerID
	Dir           string
	Addr          string
	Cluster       string
	CA, Cert, Key []byte                   // DER
	Peers         map[raft.ServerID]string // the initial servers, or none
	Join          []string                 // addresses of the cluster to join, or none
	Away          bool                     // its KEK does not answer
}

func serve() error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	r, w := io.Pipe()
	go func() { // ends with the process
		io.Copy(w, os.Stdin)
		cancel()
		w.Close()
	}()
	in := bufio.NewReader(r)
	line, err := in.ReadBytes('\n')
	if err != nil {
		return err
	}
	var s setup
	if err := json.Unmarshal(line, &s); err != nil {
		return err
	}
	conf, err := s.tls()
	if err != nil {
		return err
	}
	kek, keys := &fickle{KEK: keyring.InlineKEK()}, keyring.NewFSM()
	kek.away.Store(s.Away)
	node, err := node.Start(ctx, node.Config{
		ID: s.ID, Dir: s.Dir, Addr: s.Addr, Cluster: s.Cluster, Peers: s.Peers, Join: s.Join,
		KEKs: []keyring.KEK{kek}, Keys: keys, App: terms{},
		TLS:      func() (*tls.Config, error) { return conf, nil },
		Rotation: keyring.RotationPolicy{Every: -1}, // only when asked
		Tokens:   keyring.TokenPolicy{Algorithm: "EdDSA"},
		Logger:   hclog.New(&hclog.LoggerOptions{Name: string(s.ID), Level: hclog.Info, Output: os.Stderr}),
	})
	if err != nil {
		return err
	}
	calls := rpc.NewServer()
	if err := calls.Register(&Server{ctx, node, keys, kek}); err != nil {
		return err
	}
	calls.ServeCodec(jsonrpc.NewServerCodec(struct {
		io.Reader
		io.WriteCloser
	}{in, os.Stdout}))
	return node.Close()
}

func (s setup) tls() (*tls.Config, error) {
	key, err := x509.ParsePKCS8PrivateKey(s.Key)
	if err != nil {
		return nil, err
	}
	ca, err := x509.ParseCertificate(s.CA)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{s.Cert}, PrivateKey: key}}, RootCAs: roots}, nil
}

// fickle is a KEK that can be taken away.
type fickle struct {
	keyring.KEK
	away atomic.Bool
}

func (f *fickle) ID() string { return "fickle" }

func (f *fickle) Wrap(ctx context.Context, plaintext, aad []byte) ([]byte, error) {
	if f.away.Load() {
		return nil, errors.New("away")
	}
	return f.KEK.Wrap(ctx, plaintext, aad)
}

func (f *fickle) Unwrap(ctx context.Context, wrapped, aad []byte) ([]byte, error) {
	if f.away.Load() {
		return nil, errors.New("away")
	}
	return f.KEK.Unwrap(ctx, wrapped, aad)
}

// terms is an FSM that tells in which term an entry is.
type terms struct{}

func (terms) Apply(l *raft.Log) any                { return l.Term }
func (terms) Restore(rc io.ReadCloser) error       { return rc.Close() }
func (terms) Snapshot() (raft.FSMSnapshot, error)  { return terms{}, nil }
func (terms) Persist(sink raft.SnapshotSink) error { return sink.Close() }
func (terms) Release()                             {}

// Server is what the test can call.
type Server struct {
	ctx  context.Context // ends with the input; net/rpc has none for a call
	node *node.Node
	keys *keyring.FSM
	kek  *fickle
}

func (s *Server) bound() (context.Context, context.CancelFunc) {
	return context.WithTimeout(s.ctx, callTime)
}

// Ready waits until the server opens what there is.
func (s *Server) Ready(_ struct{}, _ *struct{}) error {
	ctx, cancel := s.bound()
	defer cancel()
	return s.node.Keyring().WaitReady(ctx)
}

// Status tells how things are.
func (s *Server) Status(_ struct{}, out *keyring.Status) (err error) {
	*out, err = s.node.Keyring().Status(s.ctx)
	return err
}

// Encrypt seals on the leader, wherever it is.
func (s *Server) Encrypt(plaintext []byte, out *[]byte) (err error) {
	ctx, cancel := s.bound()
	defer cancel()
	*out, err = s.node.Encrypt(ctx, plaintext, nil)
	return err
}

// Decrypt opens here and nowhere else.
func (s *Server) Decrypt(ciphertext []byte, out *[]byte) (err error) {
	*out, err = s.node.Keyring().Decrypt(ciphertext, nil)
	return err
}

// Rotate makes a new key, to become active as soon as it can.
func (s *Server) Rotate(_ struct{}, out *keyring.KeyID) error {
	ctx, cancel := s.bound()
	defer cancel()
	key, err := s.node.Rotate(ctx, keyring.RotateOptions{})
	*out = key.ID
	return err
}

// Prepublish makes a new key, to become active in a while, and returns when it is held by a majority.
func (s *Server) Prepublish(in time.Duration, out *keyring.KeyID) error {
	ctx, cancel := s.bound()
	defer cancel()
	key, err := s.node.Rotate(ctx, keyring.RotateOptions{Publish: time.Now().Add(in)})
	*out = key.ID
	return err
}

// Address is where a server listens.
type Address struct {
	ID   raft.ServerID
	Addr string
}

// Add lets a server join.
func (s *Server) Add(a Address, _ *struct{}) error {
	ctx, cancel := s.bound()
	defer cancel()
	return s.node.AddServer(ctx, a.ID, a.Addr)
}

// Remove takes a server out that does not run.
func (s *Server) Remove(id raft.ServerID, _ *struct{}) error {
	ctx, cancel := s.bound()
	defer cancel()
	return s.node.RemoveServer(ctx, id, keyring.RemoveServerOptions{Force: true})
}

// Token is one with which a server may join.
func (s *Server) Token(id raft.ServerID, out *string) (err error) {
	*out, err = s.node.JoinToken(id, 0)
	return err
}

// Term is raft's, on the leader: that of an entry which is committed for it.
func (s *Server) Term(_ struct{}, out *uint64) error {
	ctx, cancel := s.bound()
	defer cancel()
	term, err := s.node.Apply(ctx, nil)
	if err == nil {
		*out = term.(uint64)
	}
	return err
}

// Ring is the section of the keyring in a snapshot, as it would be made now.
func (s *Server) Ring(_ struct{}, out *[]byte) error {
	snapshot, err := s.keys.Snapshot()
	if err != nil {
		return err
	}
	var b sink
	err = snapshot.Persist(&b)
	*out = b.Bytes()
	return err
}

type sink struct{ bytes.Buffer }

func (*sink) ID() string    { return "" }
func (*sink) Close() error  { return nil }
func (*sink) Cancel() error { return nil }

// Away takes the server's KEK away, or gives it back.
func (s *Server) Away(away bool, _ *struct{}) error {
	s.kek.away.Store(away)
	return nil
}

// Rest collects garbage and gives the memory back to the system.
func (s *Server) Rest(_ struct{}, _ *struct{}) error {
	debug.FreeOSMemory()
	return nil
}

// Goroutines counts them.
func (s *Server) Goroutines(_ struct{}, out *int) error {
	*out = runtime.NumGoroutine()
	return nil
}

// Stacks are what the goroutines do, by what they do.
func (s *Server) Stacks(_ struct{}, out *string) error {
	var b bytes.Buffer
	err := pprof.Lookup("goroutine").WriteTo(&b, 1)
	*out = b.String()
	return err
}
