package peer

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// ErrKept is matched by the error of a Source that can't read what it has now, and returns what it has read last beside that
// error. Connections go on with it.
var ErrKept = errors.New("the files that were read before stay in use")

// maxPEM is how much a PEM file may have, in bytes.
const maxPEM = 1 << 20

// Files returns a Source that reads PEM files: a certificate with its chain, its private key, and CAs. Errors name a file, and
// have nothing of what is in it.
func Files(certificate, key, cas string) Source {
	return (&files{certificate: certificate, key: key, cas: cas}).source
}

// files are three PEM files, and what was read of them.
type files struct {
	certificate, key, cas string

	mu   sync.Mutex    // guards below
	seen []fs.FileInfo // of the files when they were read last; nil if they are to be read again in any case
	last *tls.Config   // by the last read without an error; nil if there was none
	err  error         // of the last read
}

// source reads the files, if they have changed since it did so last.
func (f *files) source() (*tls.Config, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now, err := f.look()
	if err == nil && f.seen != nil && slices.EqualFunc(now, f.seen, unchanged) {
		return f.last, f.err
	}
	f.seen = nil
	var conf *tls.Config
	if err == nil {
		conf, err = f.read()
		if settled(now) {
			f.seen = now
		}
	}
	if f.err = err; err == nil {
		f.last = conf
	} else if f.last != nil {
		f.err = fmt.Errorf("%w: %w", err, ErrKept)
	}
	return f.last, f.err
}

// look says how the files are, without reading them.
func (f *files) look() (all []fs.FileInfo, err error) {
	for _, path := range []string{f.certificate, f.key, f.cas} {
		info, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		if err := regular(path, info); err != nil {
			return nil, err
		}
		all = append(all, info)
	}
	return all, nil
}

func regular(path string, info fs.FileInfo) error {
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file", path)
	}
	return nil
}

func unchanged(a, b fs.FileInfo) bool {
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

// settled reports whether another change of the files would show: within one tick of the file system's clock it would not.
func settled(all []fs.FileInfo) bool {
	const tick = 2 * time.Second
	now := time.Now()
	return !slices.ContainsFunc(all, func(i fs.FileInfo) bool { return now.Sub(i.ModTime()) < tick })
}

// read reads the files.
func (f *files) read() (*tls.Config, error) {
	chain, _, err := certificatesIn(f.certificate)
	if err != nil {
		return nil, err
	}
	key, err := readPEM(f.key)
	defer clear(key)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(chain, key)
	switch {
	case err != nil && strings.Contains(err.Error(), "does not match"):
		return nil, fmt.Errorf("the private key in %s does not belong to the certificate in %s", f.key, f.certificate)
	case err != nil:
		return nil, fmt.Errorf("%s has no readable private key: want one PEM block that is not encrypted", f.key)
	}
	_, cas, err := certificatesIn(f.cas)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	for _, ca := range cas {
		roots.AddCert(ca)
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: roots}, nil
}

// readPEM reads a file, which has to have PEM blocks to its end: one that is being written has the beginning of one.
func readPEM(path string) ([]byte, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // it waits for nobody who writes into a FIFO
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err == nil {
		err = regular(path, info)
	}
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(file, maxPEM+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxPEM {
		return nil, fmt.Errorf("%s has more than %d bytes", path, maxPEM)
	}
	blocks := 0
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		blocks++
		clear(block.Bytes)
	}
	switch begun := bytes.Count(b, []byte("-----BEGIN ")); {
	case begun == 0:
		return nil, fmt.Errorf("%s has no PEM block", path)
	case begun != blocks:
		return nil, fmt.Errorf("%s has a PEM block that is cut off or damaged", path)
	}
	return b, nil
}

// certificatesIn returns what a file has, and the certificates in it.
func certificatesIn(path string) (text []byte, all []*x509.Certificate, err error) {
	if text, err = readPEM(path); err != nil {
		return nil, nil, err
	}
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: certificate %d in it can't be parsed", path, len(all)+1)
		}
		all = append(all, c)
	}
	if len(all) == 0 {
		return nil, nil, fmt.Errorf("%s has no certificate", path)
	}
	return text, all, nil
}
