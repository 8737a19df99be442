package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"net"
	"net/rpc"
	"net/rpc/jsonrpc"
	"os"
	"os/signal"
	"time"

	"example.com/keyring"
	"example.com/keyring/node"
	"github.com/hashicorp/raft"
)

const (
	childEnv    = "KEYRING_FAILOVER_SERVER" // marks a process as a server
	clusterName = "failover"                // in the certificates
	callTime    = 10 * time.Second          // for one call: longer than an election
)

// setup is the first line that a server reads.
type setup struct {
	ID            raft.ServerID
	Dir           string
	CA, Cert, Key []byte   // DER
	Join          []string // addresses of the cluster to join; empty to bootstrap one
	JoinToken     string   // from one of its servers
}

// pipes are one end of the connection between parent and server.
type pipes struct {
	io.Reader
	io.WriteCloser
}

// serve is a server's process. It answers calls on standard input and output, and ends when
// its input does: no server outlives the process that started it, however that ended.
func serve() error {
	signal.Ignore(os.Interrupt) // Ctrl-C is for the parent to act on
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
	cert, err := s.tls()
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	conf := node.Config{
		ID:       s.ID,
		Dir:      s.Dir,
		KEKs:     []keyring.KEK{keyring.InlineKEK()}, // see FileKEK and others for one that protects
		Addr:     ln.Addr().String(),
		Listener: ln,
		Cluster:  clusterName,
		TLS:      func() (*tls.Config, error) { return cert, nil },
		Join:     s.Join,

		JoinToken: s.JoinToken,
		Rotation:  keyring.RotationPolicy{Every: -1}, // only when asked
		Tokens:    keyring.TokenPolicy{Algorithm: "EdDSA"},
	}
	if len(s.Join) == 0 {
		conf.Peers = map[raft.ServerID]string{s.ID: conf.Addr}
	}
	node, err := node.Start(ctx, conf)
	switch {
	case err != nil && ctx.Err() != nil:
		return nil // the parent has not waited for it
	case err != nil:
		return err
	}
	changed := make(chan struct{})
	close(changed) // the first Status waits for nothing
	calls := rpc.NewServer()
	if err := calls.Register(&Server{ctx, node, changed}); err != nil {
		return err
	}
	calls.ServeCodec(jsonrpc.NewServerCodec(pipes{in, os.Stdout}))
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

// Server is what the parent can call.
type Server struct {
	ctx     context.Context // ends with the input; net/rpc has none for a call
	node    *node.Node
	changed <-chan struct{} // of the last Status
}

// Message is a plaintext or ciphertext and its AAD.
type Message struct{ Data, AAD []byte }

// Encrypt seals on the leader, wherever it is, and waits for one.
func (s *Server) Encrypt(m Message, out *[]byte) (err error) {
	ctx, cancel := context.WithTimeout(s.ctx, callTime)
	defer cancel()
	*out, err = s.node.Encrypt(ctx, m.Data, m.AAD)
	return err
}

// Decrypt opens here and nowhere else, to show what this server can do alone. A service
// calls Node.Decrypt, which asks the leader for what this server can't open yet.
func (s *Server) Decrypt(m Message, out *[]byte) (err error) {
	*out, err = s.node.Keyring().Decrypt(m.Data, m.AAD)
	return err
}

// Rotate makes a new key, to become active at a time or, if it is zero, at once.
func (s *Server) Rotate(publish time.Time, out *keyring.KeyID) error {
	ctx, cancel := context.WithTimeout(s.ctx, callTime)
	defer cancel()
	key, err := s.node.Rotate(ctx, keyring.RotateOptions{Publish: publish})
	*out = key.ID
	return err
}

// JoinToken lets a new server into the cluster.
func (s *Server) JoinToken(id raft.ServerID, out *string) (err error) {
	if err = s.node.Keyring().WaitReady(s.ctx); err == nil {
		*out, err = s.node.JoinToken(id, callTime)
	}
	return err
}

// Status waits for a change since it was last called, and tells how things are now. One call
// at a time.
func (s *Server) Status(_ struct{}, out *keyring.Status) (err error) {
	select {
	case <-s.changed:
	case <-s.ctx.Done():
		return context.Cause(s.ctx)
	}
	s.changed = s.node.Keyring().Changed() // before the look: no change is missed
	*out, err = s.node.Keyring().Status(s.ctx)
	return err
}
