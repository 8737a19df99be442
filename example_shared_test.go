package keyring_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"log"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"example.com/keyring"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// exampleCA stands in for the CA of the examples' hosts. Real ones read their certificates from files, with keyring.TLSFiles.
type exampleCA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newExampleCA() *exampleCA {
	ca := &exampleCA{}
	own := ca.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: "CA"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	})
	ca.cert, ca.key = own.Leaf, own.PrivateKey.(*ecdsa.PrivateKey)
	return ca
}

// source returns a certificate with that URI as ServerTLS and ClientTLS want it.
func (ca *exampleCA) source(uri string) func() (*tls.Config, error) {
	u, err := url.Parse(uri)
	if err != nil {
		log.Fatal(err)
	}
	own := ca.sign(&x509.Certificate{
		URIs: []*url.URL{u}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	})
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	return func() (*tls.Config, error) {
		return &tls.Config{Certificates: []tls.Certificate{own}, RootCAs: roots}, nil
	}
}

// sign makes a certificate that is valid for an hour; the first is the CA's own.
func (ca *exampleCA) sign(template *x509.Certificate) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		log.Fatal(err)
	}
	template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 100))
	if err != nil {
		log.Fatal(err)
	}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Minute), time.Now().Add(time.Hour)
	parent, signer := ca.cert, ca.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		log.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		log.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// rotateAndSeal has the leader rotate, and seal under the new key. It tries again when the leader changes.
func rotateAndSeal(ctx context.Context, keys []*keyring.Keyring, plaintext []byte) ([]byte, error) {
	for {
		changed := []<-chan struct{}{keys[0].Changed(), keys[1].Changed(), keys[2].Changed()}
		for _, k := range keys {
			_, err := k.Rotate(ctx, keyring.RotateOptions{})
			if err == nil {
				var sealed []byte
				if sealed, err = k.Encrypt(plaintext, nil); err == nil {
					return sealed, nil
				}
			}
			if !errors.Is(err, keyring.ErrNotLeader) && !errors.Is(err, keyring.ErrNotReady) {
				return nil, err
			}
		}
		select {
		case <-changed[0]:
		case <-changed[1]:
		case <-changed[2]:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// openSoon opens what was sealed a moment ago: a server may hear of the key after the others.
func openSoon(ctx context.Context, k *keyring.Keyring, sealed []byte) ([]byte, error) {
	for {
		changed := k.Changed()
		plaintext, err := k.Decrypt(sealed, nil)
		if !errors.Is(err, keyring.ErrUnknownKey) && !errors.Is(err, keyring.ErrKeyMissing) {
			return plaintext, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, err
		}
	}
}

// exampleServer is one server of a host, with raft in memory. ExampleOpen shows how a host starts one.
type exampleServer struct {
	dir  string
	raft *raft.Raft
	keys *keyring.Keyring
}

// startExample starts a server alone, and waits until it leads and has a key. Without an app, cfg.FSM has the raft to itself.
func startExample(cfg keyring.Config, app raft.FSM) *exampleServer {
	dir, err := os.MkdirTemp("", "keyring")
	if err != nil {
		log.Fatal(err)
	}
	conf := raft.DefaultConfig()
	conf.LocalID, conf.Logger = "s1", hclog.NewNullLogger()
	conf.HeartbeatTimeout, conf.ElectionTimeout, conf.LeaderLeaseTimeout = 50*time.Millisecond, 50*time.Millisecond, 50*time.Millisecond
	store, snapshots := raft.NewInmemStore(), raft.NewInmemSnapshotStore()
	addr, transport := raft.NewInmemTransport("")
	first := raft.Configuration{Servers: []raft.Server{{ID: conf.LocalID, Address: addr}}}
	if err := raft.BootstrapCluster(conf, store, store, snapshots, transport, first); err != nil {
		log.Fatal(err)
	}
	if cfg.FSM == nil {
		cfg.FSM = keyring.NewFSM()
	}
	var fsm raft.FSM = cfg.FSM
	if app != nil {
		fsm = keyring.Mux(cfg.FSM, app)
	}
	r, err := raft.NewRaft(conf, fsm, store, store, snapshots, transport)
	if err != nil {
		log.Fatal(err)
	}
	cfg.Dir, cfg.ID, cfg.Raft = filepath.Join(dir, "keystore"), conf.LocalID, r
	if len(cfg.KEKs) == 0 {
		cfg.KEKs = []keyring.KEK{keyring.InlineKEK()}
	}
	cfg.Tokens.Algorithm = "EdDSA" // whose keys are made at once
	keys, err := keyring.Open(context.Background(), cfg)
	if err != nil {
		log.Fatal(err)
	}
	if err := keys.WaitReady(context.Background()); err != nil {
		log.Fatal(err)
	}
	return &exampleServer{dir, r, keys}
}

// stop ends the server. Its files go with it.
func (s *exampleServer) stop() {
	if err := errors.Join(s.keys.Close(), s.raft.Shutdown().Error(), os.RemoveAll(s.dir)); err != nil {
		log.Fatal(err)
	}
}
