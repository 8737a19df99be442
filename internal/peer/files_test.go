package peer_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"example.com/keyring/internal/peer"
)

// pemFiles are the files of a server, in a directory of their own.
type pemFiles struct {
	t                    *testing.T
	certificate, key, ca string
	source               peer.Source
}

func newPEMFiles(t *testing.T, a *ca) pemFiles {
	t.Helper()
	dir := t.TempDir()
	f := pemFiles{t: t, certificate: filepath.Join(dir, "tls.crt"), key: filepath.Join(dir, "tls.key"), ca: filepath.Join(dir, "ca.crt")}
	f.write(f.ca, inPEM("CERTIFICATE", a.cert.Raw))
	f.put(a.issue([]string{serverURI("a")}))
	f.source = peer.Files(f.certificate, f.key, f.ca)
	return f
}

func (f pemFiles) put(c tls.Certificate) {
	f.t.Helper()
	var chain []byte
	for _, der := range c.Certificate {
		chain = append(chain, inPEM("CERTIFICATE", der)...)
	}
	f.write(f.certificate, chain)
	f.write(f.key, keyPEM(f.t, c))
}

func (f pemFiles) write(path string, b []byte) {
	f.t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		f.t.Fatal(err)
	}
}

func inPEM(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func keyPEM(t *testing.T, c tls.Certificate) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return inPEM("PRIVATE KEY", der)
}

// old has all files be of yesterday.
func (f pemFiles) old() {
	f.t.Helper()
	for _, path := range []string{f.certificate, f.key, f.ca} {
		at := time.Now().Add(-24 * time.Hour)
		if err := os.Chtimes(path, at, at); err != nil {
			f.t.Fatal(err)
		}
	}
}

// leaf is the certificate that a source returns now.
func leaf(t *testing.T, s peer.Source) []byte {
	t.Helper()
	c, err := s()
	if err != nil {
		t.Fatal(err)
	}
	return c.Certificates[0].Certificate[0]
}

// TestFilesAreReadAgainWhenTheyChange, and not before.
func TestFilesAreReadAgainWhenTheyChange(t *testing.T) {
	a := newCA(t)
	f := newPEMFiles(t, a)
	first := leaf(t, f.source)
	next := a.issue([]string{serverURI("a")})
	f.put(next)
	if got := leaf(t, f.source); !bytes.Equal(got, next.Certificate[0]) {
		t.Error("files that were written a moment after they were read are not read again")
	}
	f.old()
	settled, err := f.source()
	if err != nil {
		t.Fatal(err)
	}
	if again, err := f.source(); again != settled || err != nil {
		t.Errorf("files that have not changed are read again: %v", err)
	}
	if bytes.Equal(first, next.Certificate[0]) {
		t.Fatal("the certificates are the same")
	}
	renewed := a.issue([]string{serverURI("a")})
	moved := filepath.Join(t.TempDir(), "new")
	f.write(moved, inPEM("CERTIFICATE", renewed.Certificate[0]))
	f.write(f.key, keyPEM(t, renewed))
	if err := os.Rename(moved, f.certificate); err != nil {
		t.Fatal(err)
	}
	if got := leaf(t, f.source); !bytes.Equal(got, renewed.Certificate[0]) {
		t.Error("files that were replaced are not read again")
	}
	other := newCA(t)
	f.write(f.ca, append(inPEM("CERTIFICATE", a.cert.Raw), inPEM("CERTIFICATE", other.cert.Raw)...))
	c, err := f.source()
	if err != nil || !c.RootCAs.Equal(both(a, other)) {
		t.Errorf("a further CA does not count: %v", err)
	}
}

// TestFilesThatChangeWithinATickAreReadAgain: the clock of a file system may be coarse, and the size the same.
func TestFilesThatChangeWithinATickAreReadAgain(t *testing.T) {
	a := newCA(t)
	f := newPEMFiles(t, a)
	now, size := time.Now(), 4096
	give := func(c tls.Certificate) {
		f.put(c)
		f.write(f.certificate, pad(inPEM("CERTIFICATE", c.Certificate[0]), size))
		f.write(f.key, pad(keyPEM(t, c), size))
		for _, path := range []string{f.certificate, f.key, f.ca} {
			if err := os.Chtimes(path, now, now); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range 2 {
		next := a.issue([]string{serverURI("a")})
		give(next)
		if got := leaf(t, f.source); !bytes.Equal(got, next.Certificate[0]) {
			t.Error("it has the certificate from before")
		}
	}
}

// pad makes a PEM file so long.
func pad(b []byte, size int) []byte { return append(b, bytes.Repeat([]byte("\n"), size-len(b))...) }

func both(a, b *ca) *x509.CertPool {
	pool := a.pool()
	pool.AddCert(b.cert)
	return pool
}

// TestFilesThatCanNotBeReadAreNamed, with nothing of what is in them; and what was read before goes on to be used.
func TestFilesThatCanNotBeReadAreNamed(t *testing.T) {
	a := newCA(t)
	other := a.issue([]string{serverURI("a")})
	const secret = "hunter2"
	for name, tt := range map[string]struct {
		spoil func(pemFiles)
		want  []string // in the error, beside the directory
	}{
		"no certificate":        {func(f pemFiles) { os.Remove(f.certificate) }, []string{"tls.crt", "no such file"}},
		"no key":                {func(f pemFiles) { os.Remove(f.key) }, []string{"tls.key", "no such file"}},
		"no CA":                 {func(f pemFiles) { os.Remove(f.ca) }, []string{"ca.crt", "no such file"}},
		"a directory":           {func(f pemFiles) { os.Remove(f.ca); os.Mkdir(f.ca, 0o700) }, []string{"ca.crt is not a regular file"}},
		"empty":                 {func(f pemFiles) { f.write(f.certificate, nil) }, []string{"tls.crt has no PEM block"}},
		"something else":        {func(f pemFiles) { f.write(f.key, []byte(secret)) }, []string{"tls.key has no PEM block"}},
		"half of a key":         {func(f pemFiles) { f.halve(f.key) }, []string{"tls.key has a PEM block that is cut off"}},
		"half of the CAs":       {func(f pemFiles) { f.halve(f.ca) }, []string{"ca.crt has a PEM block that is cut off"}},
		"the key of another":    {func(f pemFiles) { f.write(f.key, keyPEM(f.t, other)) }, []string{"tls.key", "does not belong to the certificate in", "tls.crt"}},
		"a key for certificate": {func(f pemFiles) { f.write(f.certificate, keyPEM(f.t, other)) }, []string{"tls.crt has no certificate"}},
		"a certificate for key": {func(f pemFiles) { f.write(f.key, inPEM("CERTIFICATE", a.cert.Raw)) }, []string{"tls.key has no readable private key"}},
		"no key in the block":   {func(f pemFiles) { f.write(f.key, inPEM("PRIVATE KEY", []byte(secret))) }, []string{"tls.key has no readable private key"}},
		"no certificate in it":  {func(f pemFiles) { f.write(f.ca, inPEM("CERTIFICATE", []byte(secret))) }, []string{"ca.crt: certificate 1 in it"}},
		"too long":              {func(f pemFiles) { f.write(f.ca, make([]byte, 2<<20)) }, []string{"ca.crt has more than"}},
	} {
		t.Run(name, func(t *testing.T) {
			fresh, used := newPEMFiles(t, a), newPEMFiles(t, a)
			before := leaf(t, used.source)
			tt.spoil(fresh)
			tt.spoil(used)
			c, err := fresh.source()
			if c != nil || err == nil || errors.Is(err, peer.ErrKept) {
				t.Fatalf("nothing was read before: %v, %v", c, err)
			}
			c, kept := used.source()
			if c == nil || !errors.Is(kept, peer.ErrKept) {
				t.Fatalf("what was read before is not used: %v", kept)
			}
			if base, err := peer.Load(used.source); err != nil || !bytes.Equal(base.Certificates[0].Certificate[0], before) {
				t.Errorf("connections do not use it: %v", err)
			}
			for _, text := range []string{err.Error(), kept.Error()} {
				if strings.Contains(text, secret) || strings.Contains(text, "-----") {
					t.Errorf("%q has what is in the file", text)
				}
				for _, want := range tt.want {
					if !strings.Contains(text, want) {
						t.Errorf("%q does not say %q", text, want)
					}
				}
			}
			used.put(other)
			used.mend(a)
			if got := leaf(t, used.source); !bytes.Equal(got, other.Certificate[0]) {
				t.Error("the files are in order again, and are not used")
			}
		})
	}
}

func (f pemFiles) halve(path string) {
	f.t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		f.t.Fatal(err)
	}
	f.write(path, b[:len(b)/2])
}

// mend writes the CA.
func (f pemFiles) mend(a *ca) {
	f.t.Helper()
	if info, err := os.Stat(f.ca); err == nil && info.IsDir() {
		os.Remove(f.ca)
	}
	f.write(f.ca, inPEM("CERTIFICATE", a.cert.Raw))
}

// TestErrorOfASourceCounts if nothing comes beside it that was read before.
func TestErrorOfASourceCounts(t *testing.T) {
	a := newCA(t)
	good, err := a.source("a")()
	if err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]peer.Source{
		"nothing beside it": func() (*tls.Config, error) { return nil, peer.ErrKept },
		"another error":     func() (*tls.Config, error) { return good, errors.New("no") },
	} {
		if _, err := peer.Load(s); err == nil {
			t.Errorf("%s: it is used", name)
		}
	}
}
