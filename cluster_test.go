package keyring_test

import (
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
)

func TestClusterSealsOpensAndRotates(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		leader := keyringtest.Ready(t, c)
		first, err := leader.Keyring.Encrypt([]byte("hello"), []byte("aad"))
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		key, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		t.Log("rotated in", time.Since(start), key.State, key.Holders)
		if id, _ := keyring.CiphertextKeyID(first); key.State != keyring.StateActive || key.ID == id {
			t.Fatalf("after Rotate: key %s is %s", key.ID, key.State)
		}
		synctest.Wait()
		for _, s := range c.Servers {
			got, err := s.Keyring.Decrypt(first, []byte("aad"))
			if err != nil || string(got) != "hello" {
				t.Errorf("%s: %q, %v", s.ID, got, err)
			}
			st, _ := s.Keyring.Status(t.Context())
			t.Log(s.ID, st.Problems, st.Keys[0].Holders)
		}
	})
}
