package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	mrand "math/rand/v2"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/hashicorp/raft"
)

const (
	members   = 3 // unless -servers says otherwise
	certValid = 365 * 24 * time.Hour
)

// initialize is the command init.
func initialize(args []string, stdout io.Writer) error {
	fs := flag.NewFlagSet("init", flag.ContinueOnError)
	port, servers := fs.Int("port", 8001, "the first `port`; 0 chooses free ones"), fs.Int("servers", members, "how `many` servers, 1 to 9")
	args, err := flags(fs, args, 1)
	if err != nil {
		return err
	}
	if *servers < 1 || *servers > 9 {
		return usage{fmt.Errorf("init: -servers %d: want 1 to 9", *servers)}
	}
	if last := *port + 2**servers - 1; *port < 0 || last > 65535 {
		return usage{fmt.Errorf("init: -port %d: the ports %[1]d to %d must be within 1 to 65535; 0 chooses free ports", *port, last)}
	}
	if err := setUp(args[0], *port, *servers); err != nil {
		return err
	}
	c, err := readCluster(args[0])
	if err != nil {
		return err
	}
	for i := range *servers {
		id := raft.ServerID(fmt.Sprintf("s%d", i+1))
		fmt.Fprintf(stdout, "controlplane serve %s %s   # http://%s\n", line(args[0]), id, c.Servers[id].HTTP)
	}
	return nil
}

// setUp makes all that servers on this machine need, in a directory that is empty or absent:
//
//	cluster.json   their names and addresses
//	ca.pem         the certificate of their CA, whose key is forgotten
//	s1.pem ...     a server's certificate and key
//	s1.kek ...     what wraps a server's keys: not in its data directory
//
// In the field each server has its own, and no machine has all. Ports count up from port; zero
// takes free ones.
func setUp(dir string, port, servers int) error {
	if left, err := os.ReadDir(dir); err == nil && len(left) > 0 || err != nil && !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(err, fmt.Errorf("%s is not empty", dir))
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	// It may be there, and open to others, who could exchange what serve reads from it by name.
	if err := os.Chmod(dir, 0o700); err != nil {
		return err
	}
	addrs, err := addresses(port, 2*servers)
	if err != nil {
		return err
	}
	c := cluster{Name: "controlplane", Servers: map[raft.ServerID]serverAddrs{}}
	ca, err := issue(&x509.Certificate{
		Subject: pkix.Name{CommonName: c.Name + " CA"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign,
	}, nil)
	if err != nil {
		return err
	}
	files := map[string][]byte{"ca.pem": ca.pem()}
	for i := range servers {
		id := "s" + strconv.Itoa(i+1)
		c.Servers[raft.ServerID(id)] = serverAddrs{Raft: addrs[servers+i], HTTP: addrs[i]}
		own, err := issue(&x509.Certificate{
			KeyUsage:    x509.KeyUsageDigitalSignature,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
			URIs:        []*url.URL{{Scheme: "keyring", Host: c.Name, Path: "/server/" + id}},
		}, ca)
		if err != nil {
			return err
		}
		key, err := x509.MarshalPKCS8PrivateKey(own.key)
		if err != nil {
			return err
		}
		files[id+".pem"] = append(own.pem(), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})...)
		files[id+".kek"] = make([]byte, 32)
		rand.Read(files[id+".kek"])
	}
	c.Issuer = "http://" + addrs[0]
	if files["cluster.json"], err = json.MarshalIndent(c, "", "  "); err != nil {
		return err
	}
	for name, content := range files {
		if err := writeNew(filepath.Join(dir, name), content); err != nil {
			return err
		}
	}
	return syncDir(dir) // no key may be wrapped under a KEK that a power cut takes away
}

// writeNew writes a file that was not there, for its owner alone, and durably once its directory is synced too.
func writeNew(path string, content []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// addresses returns n addresses on loopback.
func addresses(port, n int) (out []string, err error) {
	for i := range n {
		if port > 0 {
			out = append(out, net.JoinHostPort("127.0.0.1", strconv.Itoa(port+i)))
			continue
		}
		ln, err := listenFree()
		if err != nil {
			return nil, err
		}
		defer ln.Close() // after the last is found, so that all differ
		out = append(out, ln.Addr().String())
	}
	return out, nil
}

// listenFree listens on a free port below those that systems give to connections: any of these could
// have it before the server does.
func listenFree() (ln net.Listener, err error) {
	for range 100 {
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(20_000+mrand.IntN(12_000)))
		if ln, err = net.Listen("tcp", addr); err == nil {
			return ln, nil
		}
	}
	return nil, err
}

// identity is a certificate and its key.
type identity struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// pem encodes the certificate.
func (i *identity) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.cert.Raw})
}

// issue makes an identity that a CA signs; without one it signs itself.
func issue(template *x509.Certificate, ca *identity) (*identity, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Minute), time.Now().Add(certValid)
	if ca == nil {
		ca = &identity{template, key}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key.Public(), ca.key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return &identity{cert, key}, err
}
