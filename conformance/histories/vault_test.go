package histories

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"example.com/keyring"
	"example.com/keyring/internal/nks"
)

// vault is the key material of all servers, as the test opens it with their KEKs.
type vault struct {
	mu      sync.Mutex          // guards below
	opened  map[[2]string]bool  // by host and key ID
	lost    map[[2]string]bool  // those of servers that were wiped
	checks  map[string][32]byte // check values, by key ID
	secrets [][]byte            // material, and what it is wrapped to
}

func (l *lab) keystore(h *host) string { return filepath.Join(l.dir, h.id, "keystore") }

// openKey opens the file of a key in a host's keystore, and adds what is in it to the vault.
func (l *lab) openKey(h *host, name string) error {
	b, err := os.ReadFile(filepath.Join(l.keystore(h), name))
	if err != nil {
		return err
	}
	file, err := nks.DecodeFile(b)
	if err != nil {
		return err
	}
	id := keyring.KeyID(file.ID).String()
	l.vault.mu.Lock()
	defer l.vault.mu.Unlock()
	if l.vault.opened == nil {
		l.vault.opened, l.vault.checks = map[[2]string]bool{}, map[string][32]byte{}
	}
	if l.vault.opened[[2]string{h.id, id}] {
		return nil
	}
	plain, err := h.kek.Unwrap(context.Background(), file.Wrapped[0].Ciphertext, file.AAD())
	if err != nil {
		return err
	}
	m, err := nks.Decode(plain)
	if err != nil {
		return err
	}
	check, known := l.vault.checks[id]
	if got := m.Check(file.ID, file.Algorithm); got != file.Check || known && got != check {
		return errors.New("it is another key than on the other servers, or than it says")
	}
	l.vault.opened[[2]string{h.id, id}] = true
	l.vault.secrets = append(l.vault.secrets, file.Wrapped[0].Ciphertext)
	if !known {
		l.vault.checks[id] = file.Check
		private, err := x509.ParsePKCS8PrivateKey(m.Signing())
		if err != nil {
			return err
		}
		scalar, err := private.(*ecdsa.PrivateKey).Bytes() // tokens are signed with ES256
		if err != nil {
			return err
		}
		l.vault.secrets = append(l.vault.secrets, bytes.Clone(m.Root()[:]), scalar, bytes.Clone(m.Signing()))
	}
	return nil
}

// lose takes note that a server is wiped, whose files were all opened just before.
func (v *vault) lose(h *host) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.lost == nil {
		v.lost = map[[2]string]bool{}
	}
	for file := range v.opened {
		if file[0] == h.id {
			v.lost[file] = true
			delete(v.opened, file) // what it fetches again is another file
		}
	}
}

func (v *vault) hasLost(h *host, id string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.lost[[2]string{h.id, id}]
}

// checkHeld looks for the file of a key that is active, or was: I3. It may be removed meanwhile only
// if it has long been retired. A server that held it, and was wiped since, counts.
func (l *lab) checkHeld(id string) {
	l.t.Helper()
	var errs []error
	for _, h := range l.hosts {
		key, err := keyring.ParseKeyID(id)
		if err == nil {
			err = l.openKey(h, nks.FileName(key))
		}
		if err != nil && !l.vault.hasLost(h, id) {
			errs = append(errs, fmt.Errorf("%s: %w", h.id, err))
		}
	}
	if held := len(l.hosts) - len(errs); held <= len(l.hosts)/2 {
		l.t.Errorf("I3: key %s is active, and %d of %d servers hold it: %v", id, held, len(l.hosts), errors.Join(errs...))
	}
}

// examine looks at the keystore of a server that does not run, for I8: every key file opens, whatever
// the server was doing when it ended.
func (l *lab) examine(h *host) (kinds map[keyring.FileKind]int) {
	l.t.Helper()
	reports, err := keyring.Inspect(context.Background(), l.keystore(h), h.kek)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		l.t.Errorf("I8: %s: %v", h.id, err)
	}
	kinds = map[keyring.FileKind]int{}
	for _, r := range reports {
		kinds[r.Kind]++
		if r.Kind == keyring.FileKey || r.Kind == keyring.FileRemoved {
			if r.Err == nil {
				r.Err = l.openKey(h, r.Name)
			}
		}
		if r.Err != nil || r.Kind == keyring.FileAside || r.Kind == keyring.FileForeign {
			l.t.Errorf("I8: %s: %s, %s: %v", h.id, r.Name, r.Kind, r.Err)
		}
	}
	return kinds
}

// checkSecret searches all that the servers have written for key material, wrapped or not, and for
// their KEKs: I1. Key files are where the material is to be. None of the servers runs.
func (l *lab) checkSecret(t *testing.T) {
	t.Helper()
	secrets := l.vault.secrets
	for _, h := range l.hosts {
		kek, err := os.ReadFile(filepath.Join(l.dir, h.id+".kek"))
		if err != nil {
			t.Error(err)
		}
		secrets = append(secrets, kek)
	}
	index := indexed(secrets)
	var searched, size, inKeyFiles int
	search := func(path string) int {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Error(err)
		}
		searched, size = searched+1, size+len(b)
		return index.count(b)
	}
	for _, h := range l.hosts {
		if n := search(h.log.file.Name()); n > 0 {
			t.Errorf("I1: %d secrets in the log of %s", n, h.id)
		}
		err := filepath.WalkDir(filepath.Join(l.dir, h.id), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			n := search(path)
			if strings.Contains(filepath.Base(path), ".nks.json") { // also that of a key that was removed
				inKeyFiles += n
			} else if n > 0 {
				t.Errorf("I1: %d secrets in %s", n, path)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	t.Logf("I1: searched %d files, %d MiB, for %d secrets", searched, size>>20, len(secrets))
	if inKeyFiles == 0 || len(secrets) < 3*len(l.hosts) {
		t.Errorf("the search has found %d of %d secrets in key files, where they are", inKeyFiles, len(secrets))
	}
}

// spellings finds any of many secrets, raw, in hex of both cases, and in base64 of both alphabets at
// each of its three alignments.
type spellings struct {
	begin []uint64            // a bit for each hash of the first 8 bytes of one
	all   map[uint64][][]byte // by their first 8 bytes
}

const beginBits = 24

func beginOf(head uint64) uint64 { return head * 0x9e3779b97f4a7c15 >> (64 - beginBits) }

func indexed(secrets [][]byte) *spellings {
	s := &spellings{make([]uint64, 1<<beginBits/64), map[uint64][][]byte{}}
	for _, secret := range secrets {
		if len(secret) > 32 {
			secret = secret[len(secret)/2-16 : len(secret)/2+16]
		}
		h := hex.EncodeToString(secret)
		s.add(secret, []byte(h), []byte(strings.ToUpper(h)))
		for skip := range 3 {
			// Without the characters at both ends that depend on what stands beside.
			whole := secret[skip : skip+(len(secret)-skip)/3*3]
			s.add([]byte(base64.RawStdEncoding.EncodeToString(whole)), []byte(base64.RawURLEncoding.EncodeToString(whole)))
		}
	}
	return s
}

func (s *spellings) add(spelt ...[]byte) {
	for _, b := range spelt {
		head := binary.BigEndian.Uint64(b)
		at := beginOf(head)
		s.begin[at/64] |= 1 << (at % 64)
		s.all[head] = append(s.all[head], b)
	}
}

// count returns how often one of the secrets is in data.
func (s *spellings) count(data []byte) (n int) {
	for i := 0; i+8 <= len(data); i++ {
		head := binary.BigEndian.Uint64(data[i:])
		if at := beginOf(head); s.begin[at/64]&(1<<(at%64)) == 0 {
			continue
		}
		for _, spelt := range s.all[head] {
			if bytes.HasPrefix(data[i:], spelt) {
				n++
				break
			}
		}
	}
	return n
}

func TestSpellingsAreFound(t *testing.T) {
	secret := []byte("0123456789abcdef\x00\xff\xfe\xfd456789abcdef")
	index := indexed([][]byte{[]byte("another secret of 32 bytes......"), secret})
	for _, before := range []string{"", "x", "xy"} {
		whole := []byte(before + string(secret) + "z")
		for _, text := range []string{
			string(whole), hex.EncodeToString(whole), strings.ToUpper(hex.EncodeToString(whole)),
			base64.StdEncoding.EncodeToString(whole), base64.RawURLEncoding.EncodeToString(whole),
		} {
			if index.count([]byte(text)) != 1 {
				t.Errorf("not found in %q", text)
			}
		}
	}
	if index.count([]byte("nothing of the kind is here")) != 0 {
		t.Error("found where it is not")
	}
}
