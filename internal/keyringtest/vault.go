package keyringtest

// Vault: ciphertexts that have to open for ever.

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"example.com/keyring"
)

// Rotate makes n keys, each sealing one record.
func Rotate(t testing.TB, c *Cluster, v *Vault, n int) {
	t.Helper()
	leader := c.Leader()
	for range n {
		if _, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := v.Seal(leader); err != nil {
			t.Fatal(err)
		}
	}
}

// Vault is what was sealed in a test, and has to open for ever.
type Vault struct {
	TB     testing.TB
	Sealed [][]byte
}

// Seal seals one more record on the server. A server that can't is no failure.
func (v *Vault) Seal(s *Server) error {
	c, err := s.Keyring.Encrypt(v.record(len(v.Sealed)), []byte("aad"))
	if err == nil {
		v.Sealed = append(v.Sealed, c)
	}
	return err
}

func (v *Vault) record(i int) []byte { return fmt.Appendf(nil, "record %d", i) }

// Check opens every record on every live server.
func (v *Vault) Check(c *Cluster) {
	v.TB.Helper()
	if len(v.Sealed) == 0 {
		v.TB.Error("nothing was sealed")
	}
	for _, s := range c.Live() {
		for i, sealed := range v.Sealed {
			got, err := s.Keyring.Decrypt(sealed, []byte("aad"))
			if err != nil || string(got) != string(v.record(i)) {
				v.TB.Errorf("%s: record %d: %q, %v", s.ID, i, got, err)
			}
		}
	}
}

// CheckOneActive requires that every live server has the same active key, and one only.
func CheckOneActive(t testing.TB, c *Cluster) {
	t.Helper()
	var active []keyring.KeyID
	for _, s := range c.Live() {
		for _, k := range s.Keyring.Keys() {
			if k.State == keyring.StateActive {
				active = append(active, k.ID)
			}
		}
	}
	if len(active) != len(c.Live()) || len(slices.Compact(active)) != 1 {
		t.Errorf("active keys on %d servers: %v", len(c.Live()), active)
	}
}

// Naming returns a ciphertext that names another key.
func Naming(ciphertext []byte, id keyring.KeyID) []byte {
	b := bytes.Clone(ciphertext)
	copy(b[1:17], id[:])
	return b
}
