package keyring_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"

	"example.com/keyring"
	"filippo.io/age"
	"github.com/hashicorp/raft"
)

// A host with a raft of its own gives it the keyring's FSM, and opens the keyring on it. This one has a single server, and its raft
// in memory. With more servers it needs a Transport: package port has one.
func ExampleOpen() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "keyring")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)

	conf, store, snapshots := raft.DefaultConfig(), raft.NewInmemStore(), raft.NewInmemSnapshotStore()
	conf.LocalID, conf.LogLevel = "s1", "ERROR"
	addr, transport := raft.NewInmemTransport("")
	servers := raft.Configuration{Servers: []raft.Server{{ID: conf.LocalID, Address: addr}}}
	if err := raft.BootstrapCluster(conf, store, store, snapshots, transport, servers); err != nil { // once
		log.Fatal(err)
	}
	fsm := keyring.NewFSM()
	r, err := raft.NewRaft(conf, fsm, store, store, snapshots, transport) // or keyring.Mux(fsm, yours)
	if err != nil {
		log.Fatal(err)
	}
	defer func() { r.Shutdown().Error() }() // after Close

	keys, err := keyring.Open(ctx, keyring.Config{
		Dir:  filepath.Join(dir, "keystore"),
		ID:   conf.LocalID,
		Raft: r,
		FSM:  fsm,
		KEKs: []keyring.KEK{keyring.InlineKEK()}, // for a first try: FileKEK and module kms protect the files
	})
	if err != nil {
		log.Fatal(err)
	}
	defer keys.Close()
	if err := keys.WaitReady(ctx); err != nil {
		log.Fatal(err)
	}

	ciphertext, err := keys.Encrypt([]byte("secret"), []byte("users/7")) // on the leader
	if err != nil {
		log.Fatal(err)
	}
	plaintext, err := keys.Decrypt(ciphertext, []byte("users/7")) // on every server
	fmt.Printf("%s, %v\n", plaintext, err)
	// Output: secret, <nil>
}

// A token is signed on the leader. Any server verifies it, and so does any JWT library that fetches the JWKS.
func ExampleKeyring_Sign() {
	s := startExample(keyring.Config{}, nil)
	defer s.stop()

	token, err := s.keys.Sign(map[string]any{"sub": "job/web", "aud": "consul"}) // exp, iat, nbf and jti are filled in
	if err != nil {
		log.Fatal(err)
	}
	var claims struct {
		Subject string `json:"sub"`
	}
	err = s.keys.Verify(token, keyring.Expect{Audience: []string{"consul"}}, &claims)
	fmt.Println(claims.Subject, err)
	// Output: job/web <nil>
}

// Verify rejects a token for somebody else. Log the reason: the caller of an API need not know it.
func ExampleKeyring_Verify() {
	s := startExample(keyring.Config{}, nil)
	defer s.stop()

	token, err := s.keys.Sign(map[string]any{"sub": "job/web", "aud": "consul"})
	if err != nil {
		log.Fatal(err)
	}
	switch err := s.keys.Verify(token, keyring.Expect{Audience: []string{"billing"}}); {
	case err == nil:
		fmt.Println("200")
	case errors.Is(err, keyring.ErrToken):
		fmt.Println("401:", err)
	default: // this server can't tell: it has not caught up, say
		fmt.Println("503:", err)
	}
	// Output: 401: token refused: audience
}

// Relying parties find the public keys below the issuer.
func ExampleKeyring_WellKnown() {
	s := startExample(keyring.Config{Tokens: keyring.TokenPolicy{Issuer: "https://keys.example.com"}}, nil)
	defer s.stop()

	mux := http.NewServeMux() // of https://keys.example.com
	mux.Handle("/.well-known/", s.keys.WellKnown())

	for _, path := range []string{"/.well-known/openid-configuration", "/.well-known/jwks.json"} {
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		var document struct {
			Issuer string `json:"issuer"`
			JWKS   string `json:"jwks_uri"`
			Keys   []struct {
				Algorithm string `json:"alg"`
			} `json:"keys"`
		}
		if err := json.Unmarshal(w.Body.Bytes(), &document); err != nil {
			log.Fatal(err)
		}
		fmt.Println(w.Code, document.Issuer, document.JWKS, document.Keys)
	}
	// Output:
	// 200 https://keys.example.com https://keys.example.com/.well-known/jwks.json []
	// 200   [{EdDSA}]
}

// A backup is confirmed when its file is safe. Until then Status says that there is none.
func ExampleKeyring_WriteBackup() {
	ctx := context.Background()
	s := startExample(keyring.Config{}, nil)
	defer s.stop()
	identity, err := age.GenerateX25519Identity() // offline, with age-keygen: a server has the recipient alone
	if err != nil {
		log.Fatal(err)
	}

	var file bytes.Buffer
	m, err := s.keys.WriteBackup(ctx, &file, identity.Recipient())
	if err != nil {
		log.Fatal(err)
	}
	// Sync the file, give it its name and sync its directory, or end the upload.
	if err := s.keys.ConfirmBackup(ctx, m.SHA256); err != nil {
		log.Fatal(err)
	}
	st, err := s.keys.Status(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(m.Keys), st.LastBackup.SHA256 == m.SHA256, len(st.NoBackup))
	// Output: 1 true 0
}

// A backup is verified where its identities are, without a server.
func ExampleVerifyBackup() {
	s := startExample(keyring.Config{}, nil)
	defer s.stop()
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		log.Fatal(err)
	}
	var file bytes.Buffer
	if _, err := s.keys.WriteBackup(context.Background(), &file, identity.Recipient()); err != nil {
		log.Fatal(err)
	}

	m, err := keyring.VerifyBackup(bytes.NewReader(file.Bytes()), identity)
	fmt.Println(m.Format, len(m.Keys), err)

	half := file.Bytes()[:file.Len()/2]
	_, err = keyring.VerifyBackup(bytes.NewReader(half), identity)
	fmt.Println("half of it is refused:", err != nil)
	// Output:
	// keyring backup 2 1 <nil>
	// half of it is refused: true
}

// All servers are lost. One starts again from a backup, with an empty raft log, and the others join it.
func ExampleRestore() {
	ctx := context.Background()
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		log.Fatal(err)
	}
	lost := startExample(keyring.Config{}, nil)
	ciphertext, err := lost.keys.Encrypt([]byte("secret"), nil)
	if err != nil {
		log.Fatal(err)
	}
	var file bytes.Buffer
	made, err := lost.keys.WriteBackup(ctx, &file, identity.Recipient())
	if err != nil {
		log.Fatal(err)
	}
	lost.stop()

	dir, err := os.MkdirTemp("", "keyring")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	keks := []keyring.KEK{keyring.InlineKEK()} // of the new server: any will do
	addr, transport := raft.NewInmemTransport("")
	store, snapshots := raft.NewInmemStore(), raft.NewInmemSnapshotStore()
	_, err = keyring.Restore(ctx, &file, keyring.RestoreOptions{
		Dir:        filepath.Join(dir, "keystore"),
		KEKs:       keks,
		Identities: []age.Identity{identity},
		Digest:     made.SHA256, // kept where those who write the backups can't write; or Signer
		Snapshots:  snapshots,
		Server:     raft.Server{ID: "s1", Address: addr},
	})
	if err != nil {
		log.Fatal(err)
	}

	conf, fsm := raft.DefaultConfig(), keyring.NewFSM()
	conf.LocalID, conf.LogLevel = "s1", "ERROR"
	r, err := raft.NewRaft(conf, fsm, store, store, snapshots, transport) // it is not bootstrapped: the snapshot says who votes
	if err != nil {
		log.Fatal(err)
	}
	defer func() { r.Shutdown().Error() }()
	keys, err := keyring.Open(ctx, keyring.Config{Dir: filepath.Join(dir, "keystore"), ID: "s1", Raft: r, FSM: fsm, KEKs: keks})
	if err != nil {
		log.Fatal(err)
	}
	defer keys.Close()
	if err := keys.WaitReady(ctx); err != nil {
		log.Fatal(err)
	}
	plaintext, err := keys.Decrypt(ciphertext, nil)
	fmt.Printf("%s, %v\n", plaintext, err)
	// Output: secret, <nil>
}
