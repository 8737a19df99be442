package port_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/port"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// app stands in for the FSM of the example's host.
type app struct{ keyringtest.NullFSM }

// exampleFiles returns directories with the files that a PKI gives to the servers of a cluster: one a server.
func exampleFiles(ids ...raft.ServerID) (dirs []string) {
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
	}
	caKey := exampleKey()
	for i, id := range ids {
		dir, err := os.MkdirTemp("", "port")
		if err != nil {
			log.Fatal(err)
		}
		own := &x509.Certificate{
			SerialNumber: big.NewInt(int64(i) + 2), NotBefore: ca.NotBefore, NotAfter: ca.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature,
			URIs:        []*url.URL{{Scheme: "keyring", Host: "prod", Path: "/server/" + string(id)}},
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		}
		key := exampleKey()
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			log.Fatal(err)
		}
		writeExample(dir, "ca.crt", "CERTIFICATE", exampleCertificate(ca, ca, caKey, caKey))
		writeExample(dir, "tls.crt", "CERTIFICATE", exampleCertificate(own, ca, key, caKey))
		writeExample(dir, "tls.key", "PRIVATE KEY", der)
		dirs = append(dirs, dir)
	}
	return dirs
}

// exampleConfig is that of a server's port, at an address of the loopback interface.
func exampleConfig(id raft.ServerID, dir string) port.Config {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	return port.Config{
		ID: id, Cluster: "prod", Addr: ln.Addr().String(), Listener: ln,
		TLS: keyring.TLSFiles(filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"), filepath.Join(dir, "ca.crt")),
	}
}

// exampleRaft is how raft runs in the examples: everything is in memory, and elections are short.
func exampleRaft(id raft.ServerID) (*raft.Config, *raft.InmemStore, *raft.InmemSnapshotStore) {
	conf := raft.DefaultConfig()
	conf.LocalID, conf.Logger = id, hclog.NewNullLogger()
	conf.HeartbeatTimeout, conf.ElectionTimeout, conf.LeaderLeaseTimeout = 200*time.Millisecond, 200*time.Millisecond, 100*time.Millisecond
	return conf, raft.NewInmemStore(), raft.NewInmemSnapshotStore()
}

// startFirst starts the first server of a cluster, as Example does, and waits until it has a key.
func startFirst(id raft.ServerID, dir string) (keys *keyring.Keyring, addr string, end func()) {
	p, err := port.Listen(exampleConfig(id, dir))
	if err != nil {
		log.Fatal(err)
	}
	conf, store, snapshots := exampleRaft(id)
	fsm := keyring.NewFSM()
	transport := p.RaftTransport(store, fsm)
	first := raft.Configuration{Servers: []raft.Server{{ID: id, Address: transport.LocalAddr()}}}
	if err := raft.BootstrapCluster(conf, store, store, snapshots, transport, first); err != nil {
		log.Fatal(err)
	}
	r, err := raft.NewRaft(conf, fsm, store, store, snapshots, transport)
	if err != nil {
		log.Fatal(err)
	}
	keys, err = p.Open(context.Background(), keyring.Config{
		Dir: filepath.Join(dir, "keystore"), Raft: r, FSM: fsm, KEKs: []keyring.KEK{keyring.InlineKEK()},
	})
	if err != nil {
		log.Fatal(err)
	}
	if err := keys.WaitReady(context.Background()); err != nil {
		log.Fatal(err)
	}
	return keys, string(transport.LocalAddr()), func() {
		if err := errors.Join(keys.Close(), r.Shutdown().Error(), p.Close()); err != nil {
			log.Fatal(err)
		}
	}
}

func exampleKey() *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		log.Fatal(err)
	}
	return key
}

func exampleCertificate(template, by *x509.Certificate, key, signer *ecdsa.PrivateKey) []byte {
	der, err := x509.CreateCertificate(rand.Reader, template, by, &key.PublicKey, signer)
	if err != nil {
		log.Fatal(err)
	}
	return der
}

func writeExample(dir, name, kind string, der []byte) {
	if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		log.Fatal(err)
	}
}
