package attacks

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/peer"
)

// credential is what an attacker presents, and how.
type credential struct {
	name string
	conf *tls.Config // nil for no certificate
	// of the handshake
	alpn    []string // nil for the protocol under test
	version uint16   // the highest; zero for TLS 1.3
}

// credentials are all those that are no member's.
func (c *cluster) credentials(t *testing.T) []credential {
	t.Helper()
	const member = "keyring://" + clusterName + "/server/s2"
	from := func(ca *keyringtest.CA, uri string, change func(*x509.Certificate)) *tls.Config {
		conf, err := ca.Source(uri, change)()
		if err != nil {
			t.Fatal(err)
		}
		return conf
	}
	own := func(uri string, change func(*x509.Certificate)) *tls.Config { return from(c.ca, uri, change) }
	uris := func(all ...string) func(*x509.Certificate) {
		return func(cert *x509.Certificate) {
			cert.URIs = nil
			for _, s := range all {
				u, err := url.Parse(s)
				if err != nil {
					t.Fatal(err)
				}
				cert.URIs = append(cert.URIs, u)
			}
		}
	}
	named := own("keyring://"+clusterName+"/server/x", uris())
	return []credential{
		{name: "no certificate"},
		{name: "a foreign CA", conf: from(keyringtest.NewCA(t), member, nil)},
		{name: "self-signed", conf: signed(t, member, nil)},
		{name: "signed by a member that is no CA", conf: signed(t, member, own("keyring://"+clusterName+"/server/s4", nil))},
		{name: "expired", conf: own(member, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })},
		{name: "not yet valid", conf: own(member, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) })},
		{name: "the client role", conf: own("keyring://"+clusterName+"/client/s2", nil)},
		{name: "another cluster", conf: own("keyring://other/server/s2", nil)},
		{name: "no URI", conf: named},
		{name: "two URIs", conf: own(member, uris(member, "keyring://"+clusterName+"/client/s2"))},
		{name: "two members", conf: own(member, uris(member, "keyring://"+clusterName+"/server/s3"))},
		{name: "escaped ID", conf: own(member, uris("keyring://"+clusterName+"/server/%73%32"))},
		{name: "escaped role", conf: own(member, uris("keyring://"+clusterName+"/%73erver/s2"))},
		{name: "another case of the cluster", conf: own(member, uris("keyring://ATTACKED/server/s2"))},
		{name: "a slash too many", conf: own(member, uris(member+"/"))},
		{name: "dots in the path", conf: own(member, uris("keyring://"+clusterName+"/client/../server/s2"))},
		{name: "a query", conf: own(member, uris(member+"?s3"))},
		{name: "a user", conf: own(member, uris("keyring://s1@"+clusterName+"/server/s2"))},
		{name: "a port", conf: own(member, uris("keyring://"+clusterName+":1/server/s2"))},
		{name: "for servers only", conf: own(member, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })},
		{name: "TLS 1.2", conf: own(member, nil), version: tls.VersionTLS12},
		{name: "an unknown protocol", conf: own(member, nil), alpn: []string{"h2", "http/1.1"}},
		{name: "no protocol", conf: own(member, nil), alpn: []string{}},
	}
}

// signed is a certificate that is signed by another's key, or by its own.
func signed(t *testing.T, uri string, by *tls.Config) *tls.Config {
	t.Helper()
	u, err := url.Parse(uri)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := &x509.Certificate{
		SerialNumber: big.NewInt(7), URIs: []*url.URL{u},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	parent, signer, chain := cert, any(key), [][]byte(nil)
	if by != nil {
		parent, signer, chain = by.Certificates[0].Leaf, by.Certificates[0].PrivateKey, by.Certificates[0].Certificate
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: append([][]byte{der}, chain...), PrivateKey: key}}}
}

// attackTerm is a term that no cluster gets to by itself.
const attackTerm uint64 = 1 << 40

// vote is a request of raft's for a vote, in a term that would depose every leader. A member that sends it
// has not waited to be let in.
func vote() []byte {
	return append([]byte{1}, pack(map[string]any{
		"ProtocolVersion": 3, "ID": []byte("s2"), "Addr": []byte("127.0.0.1:1"),
		"Term": attackTerm, "Candidate": []byte("127.0.0.1:1"), "LastLogIndex": attackTerm, "LastLogTerm": attackTerm, "LeadershipTransfer": true,
	})...)
}

// certificates has everybody refused who is no member, on both protocols, on every server: with an
// alert, if anything, and before a byte of theirs gets to raft.
func (c *cluster) certificates(t *testing.T) {
	c.under(t, once(func(t *testing.T) {
		for _, p := range c.honest {
			for _, alpn := range []string{peer.ALPNRaft, peer.ALPNPeer} {
				for _, cr := range c.credentials(t) {
					t.Run(string(p.id)+"/"+alpn[:12]+"/"+cr.name, func(t *testing.T) { c.refused(t, p, alpn, cr) })
				}
			}
			t.Run(string(p.id)+"/plaintext", func(t *testing.T) { c.plaintext(t, p) })
			t.Run(string(p.id)+"/a non-member", func(t *testing.T) { c.nonMember(t, p, "s9") })
		}
	}))
	c.removed(t)
	t.Run("a removed server", func(t *testing.T) {
		c.under(t, once(func(t *testing.T) {
			for _, p := range c.honest {
				c.nonMember(t, p, "s5")
			}
		}))
	})
}

// removed has a fifth server that was a member, and whose connections end with that.
func (c *cluster) removed(t *testing.T) {
	t.Helper()
	c.honest[0].must(t, "Add", map[string]any{"ID": "s5", "Addr": c.freeAddr()}, nil)
	conf := c.conf(t, "s5")
	var open []*tls.Conn
	for _, p := range c.honest {
		for _, alpn := range []string{peer.ALPNRaft, peer.ALPNPeer} {
			c.await(t, "a fifth server is let in", func() bool { // each server hears of it by and by
				raw, err := dial(t.Context(), 5, p.addr)
				if err != nil {
					return false
				}
				tc, err := admitted(raw, presenting(conf, alpn))
				if err != nil {
					raw.Close()
					return false
				}
				open = append(open, tc)
				return true
			})
		}
	}
	c.honest[0].must(t, "Remove", "s5", nil)
	for _, tc := range open {
		tc.SetDeadline(time.Now().Add(5 * time.Second))
		if b, err := io.ReadAll(tc); len(b) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a server that is removed keeps its connection: %q, %v", b, err)
		}
		tc.Close()
	}
}

// refused sends what would be understood, without waiting, and wants nothing back but an alert.
func (c *cluster) refused(t *testing.T, p *process, alpn string, cr credential) {
	t.Helper()
	<-time.After(handshakeTime)
	raw, err := dial(t.Context(), 0, p.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	raw.SetDeadline(time.Now().Add(10 * time.Second))
	protocols := cr.alpn
	if protocols == nil {
		protocols = []string{alpn}
	}
	conf := presenting(cr.conf, protocols...)
	conf.MaxVersion = cr.version
	tc := tls.Client(raw, conf)
	if err := tc.Handshake(); err != nil {
		isAlert(t, err)
		return
	}
	if alpn == peer.ALPNRaft {
		tc.Write(vote())
	} else {
		io.WriteString(tc, "POST /node/hello HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
	}
	b, err := io.ReadAll(tc)
	if len(b) > 0 {
		t.Errorf("the server said %q", b)
	}
	isAlert(t, err)
}

// isAlert wants the refusal to be one that the client can read.
func isAlert(t *testing.T, err error) {
	t.Helper()
	if op := (*net.OpError)(nil); !errors.As(err, &op) || op.Op != "remote error" {
		t.Errorf("no alert, but %v", err)
	}
}

// plaintext sends both protocols without TLS.
func (c *cluster) plaintext(t *testing.T, p *process) {
	t.Helper()
	for _, said := range [][]byte{vote(), []byte("POST /node/hello HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")} {
		raw, err := dial(t.Context(), 0, p.addr)
		if err != nil {
			t.Fatal(err)
		}
		raw.SetDeadline(time.Now().Add(10 * time.Second))
		raw.Write(said)
		b, _ := io.ReadAll(raw) // how it ends is the system's affair
		raw.Close()
		const alert = 21 // the type of the record
		if len(b) > 0 && (b[0] != alert || len(b) > 7) {
			t.Errorf("the server said %q", b)
		}
	}
}

// nonMember is a server that the CA vouches for, and no member. It may connect to ask whether it may
// become one, for which it has no token, and told nothing else.
func (c *cluster) nonMember(t *testing.T, p *process, id string) {
	t.Helper()
	conf := c.conf(t, id)
	c.refused(t, p, peer.ALPNRaft, credential{conf: conf})
	raw, err := dial(t.Context(), 0, p.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	tc, err := admitted(raw, presenting(conf, peer.ALPNPeer))
	if err != nil {
		t.Fatal(err)
	}
	line := newLine(tc)
	for _, path := range []string{"/keyring", "/node/encrypt", "/node/decrypt", "/node/sign", "/node/rotate", "/node/remove", "/node/ready", "/node/status", "/node/add-server", "/node/remove-server", "/", "/x"} {
		code, answer, err := line.post(path, []byte(`{"version":1,"hello":{}}`))
		if _, refusal := peer.DecodeAnswer[peer.HelloAnswer](answer); err != nil || code != http.StatusForbidden || !isRefusal(refusal, peer.NotMember) {
			t.Errorf("%s: %d %q %v", path, code, answer, err)
		}
	}
	anothers := c.anothers
	var bodies []string
	for _, token := range []string{"", "x", anothers, "A" + anothers[1:], anothers + "A", anothers[:len(anothers)-1], strings.Repeat("A", 900)} {
		bodies = append(bodies, fmt.Sprintf(`{"addr":"127.0.0.1:1","token":%q}`, token))
	}
	whole, err := base64.RawURLEncoding.DecodeString(anothers)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(whole[17:])
	for _, proof := range [][]byte{make([]byte, 32), whole[17:], sum[:]} {
		bodies = append(bodies, fmt.Sprintf(`{"addr":"127.0.0.1:1","id":"%x","proof":%q}`, whole[1:17], base64.StdEncoding.EncodeToString(proof)))
	}
	for _, body := range bodies {
		code, answer, err := line.post("/node/join", []byte(body))
		_, refusal := peer.DecodeAnswer[peer.HelloAnswer](answer)
		if err != nil || code != http.StatusForbidden || !isRefusal(refusal, peer.NotMember) && !isRefusal(refusal, peer.NotLeader) {
			t.Errorf("join with %.100q: %d %q %v", body, code, answer, err)
		}
	}
}

func isRefusal(err error, code peer.Code) bool {
	r := (*peer.Refusal)(nil)
	return errors.As(err, &r) && r.Code == code
}

// impostors answers in place of the fourth member, which the others dial all the time, with everything
// that does not name it.
func (c *cluster) impostors(t *testing.T) {
	var answering []credential
	for _, cr := range c.credentials(t) {
		switch cr.name {
		case "a foreign CA", "self-signed", "signed by a member that is no CA", "expired", "the client role", "another cluster", "no URI":
			answering = append(answering, cr)
		}
	}
	answering = append(answering, credential{name: "another member", conf: c.conf(t, "s2")},
		credential{name: "a non-member", conf: c.conf(t, "s9")}, credential{name: "for clients only", conf: c.forClients(t)})
	c.under(t, once(func(t *testing.T) {
		ln, err := net.Listen("tcp", c.fourth.addr)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		var wg sync.WaitGroup
		met := make(chan string)
		wg.Go(func() {
			for n := 0; ; n++ {
				raw, err := ln.Accept()
				if err != nil {
					return
				}
				cr := answering[n%len(answering)]
				wg.Go(func() {
					defer raw.Close()
					raw.SetDeadline(time.Now().Add(10 * time.Second))
					tc := tls.Server(raw, &tls.Config{
						Certificates: cr.conf.Certificates, ClientAuth: tls.RequestClientCert, NextProtos: []string{peer.ALPNRaft, peer.ALPNPeer},
					})
					if err := tc.Handshake(); err == nil {
						tc.Write([]byte{1}) // welcome
						if b, _ := io.ReadAll(tc); len(b) > 0 {
							t.Errorf("%s was told %q", cr.name, b)
						}
					}
					select {
					case met <- cr.name:
					case <-ctx.Done():
					}
				})
			}
		})
		seen := map[string]bool{}
		for len(seen) < len(answering) && ctx.Err() == nil {
			select {
			case name := <-met:
				seen[name] = true
			case <-ctx.Done():
				t.Errorf("only %d of %d impostors were met", len(seen), len(answering))
			}
		}
		cancel()
		ln.Close()
		wg.Wait()
	}))
}

func (c *cluster) forClients(t *testing.T) *tls.Config {
	t.Helper()
	conf, err := c.ca.Source("keyring://"+clusterName+"/server/"+string(stolen), func(c *x509.Certificate) {
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	})()
	if err != nil {
		t.Fatal(err)
	}
	return conf
}

// pack is msgpack of maps, arrays, numbers, bytes and booleans. What is bytes already stays as it is.
func pack(v any) packed {
	var b bytes.Buffer
	packTo(&b, v)
	return b.Bytes()
}
