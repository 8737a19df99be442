package keyring_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"slices"

	"example.com/keyring"
	"filippo.io/age"
)

// InlineKEK is for a first trial. Status says what it does not protect against.
func ExampleInlineKEK() {
	s := startExample(keyring.Config{KEKs: []keyring.KEK{keyring.InlineKEK()}}, nil)
	defer s.stop()

	st, err := s.keys.Status(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	for _, p := range st.Problems {
		if p.Kind == keyring.ProblemInlineKEK {
			fmt.Println(p)
		}
	}
	// Output: inline KEK: anyone who reads the key files has the keys
}

// The file is a systemd credential, for example, or is on a medium that does not travel with the data
// directory.
func ExampleFileKEK() {
	dir, err := os.MkdirTemp("", "kek")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "kek") // of 32 random bytes, as from "head -c 32 /dev/urandom"
	secret := make([]byte, 32)
	rand.Read(secret)
	if err := os.WriteFile(path, secret, 0o600); err != nil {
		log.Fatal(err)
	}

	kek, err := keyring.FileKEK(path)
	if err != nil {
		log.Fatal(err)
	}
	s := startExample(keyring.Config{KEKs: []keyring.KEK{kek}}, nil)
	defer s.stop()
	st, err := s.keys.Status(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(st.KEKs[0].ID == kek.ID(), st.KEKs[0].State)
	// Output: true works
}

// The passphrase comes from outside the server, such as from an operator who types it at each start.
func ExamplePassphraseKEK() {
	kek, err := keyring.PassphraseKEK([]byte("correct horse battery staple"))
	if err != nil {
		log.Fatal(err)
	}
	s := startExample(keyring.Config{KEKs: []keyring.KEK{kek}}, nil)
	defer s.stop()
	st, err := s.keys.Status(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(st.KEKs[0].ID, st.KEKs[0].State)
	// Output: passphrase works
}

// An escrow KEK wraps each key too, beside the everyday KEK, and its identity is kept in a safe. With it the
// key files open when the other KEK is lost.
func ExampleAgeKEK() {
	ctx := context.Background()
	identity, err := age.GenerateX25519Identity() // offline, with age-keygen
	if err != nil {
		log.Fatal(err)
	}
	escrow, err := keyring.AgeKEK([]age.Recipient{identity.Recipient()})
	if err != nil {
		log.Fatal(err)
	}
	daily, err := keyring.PassphraseKEK([]byte("correct horse battery staple"))
	if err != nil {
		log.Fatal(err)
	}
	s := startExample(keyring.Config{KEKs: []keyring.KEK{daily, escrow}}, nil)
	defer s.stop()

	// The passphrase is lost. The way back has the same recipients, and the identity: for Config.OldKEKs.
	wayBack, err := keyring.AgeKEK([]age.Recipient{identity.Recipient()}, identity)
	if err != nil {
		log.Fatal(err)
	}
	files, err := keyring.Inspect(ctx, filepath.Join(s.dir, "keystore"), wayBack)
	if err != nil {
		log.Fatal(err)
	}
	for _, f := range files {
		if f.Kind == keyring.FileKey {
			fmt.Println(len(f.KEKs), "KEKs, opens:", slices.Contains(f.Opens, wayBack.ID()))
		}
	}
	// Output: 2 KEKs, opens: true
}
