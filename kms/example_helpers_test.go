package kms_test

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"encoding/json"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"

	"example.com/keyring"
	"example.com/keyring/kms"
	"example.com/keyring/node"
	wrapping "github.com/hashicorp/go-kms-wrapping/v2"
	"github.com/hashicorp/go-kms-wrapping/wrappers/awskms/v2"
	"github.com/hashicorp/go-kms-wrapping/wrappers/transit/v2"
)

// statusWith starts a server with these KEKs, and returns how they answer.
func statusWith(keks ...keyring.KEK) []keyring.KEKStatus {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "kms")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	n, err := node.Start(ctx, node.Config{Dir: dir, KEKs: keks, Tokens: keyring.TokenPolicy{Algorithm: "EdDSA"}})
	if err != nil {
		log.Fatal(err)
	}
	defer n.Close()
	if err := n.Keyring().WaitReady(ctx); err != nil {
		log.Fatal(err)
	}
	st, err := n.Keyring().Status(ctx)
	if err != nil {
		log.Fatal(err)
	}
	return st.KEKs
}

func exampleGCM() cipher.AEAD {
	block, err := aes.NewCipher(aeadKey)
	if err != nil {
		log.Fatal(err)
	}
	gcm, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		log.Fatal(err)
	}
	return gcm
}

// serveTransit stands in for Vault's transit engine.
func serveTransit() (addr string, end func()) {
	srv := httptest.NewServer(&transitKey{versions: []cipher.AEAD{exampleGCM()}, oldest: 1})
	return srv.URL, srv.Close
}

// serveAWS stands in for AWS KMS, with one key behind an alias.
func serveAWS() (endpoint string, end func()) {
	const id = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
	gcm := exampleGCM()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var in struct{ Plaintext, CiphertextBlob []byte }
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			log.Fatal(err)
		}
		answer := map[string]any{"KeyId": id}
		switch call := strings.TrimPrefix(r.Header.Get("X-Amz-Target"), "TrentService."); call {
		case "DescribeKey":
			answer["KeyMetadata"] = map[string]any{"KeyId": id}
		case "Encrypt":
			answer["CiphertextBlob"] = gcm.Seal(nil, nil, in.Plaintext, nil)
		case "Decrypt":
			p, err := gcm.Open(nil, nil, in.CiphertextBlob, nil)
			if err != nil {
				w.WriteHeader(http.StatusBadRequest)
				answer = map[string]any{"__type": "InvalidCiphertextException"}
			}
			answer["Plaintext"] = p
		default:
			log.Fatalf("AWS KMS is asked for %s", call)
		}
		w.Header().Set("Content-Type", "application/x-amz-json-1.1")
		if err := json.NewEncoder(w).Encode(answer); err != nil {
			log.Fatal(err)
		}
	}))
	return srv.URL, srv.Close
}

// exampleAWS returns a KEK as that of ExampleNew_aws.
func exampleAWS() (kek keyring.KEK, end func()) {
	endpoint, end := serveAWS()
	w := awskms.NewWrapper()
	_, err := w.SetConfig(context.Background(), wrapping.WithKeyId("alias/keyring"), awskms.WithRegion("eu-central-1"),
		awskms.WithEndpoint(endpoint), awskms.WithAccessKey("example"), awskms.WithSecretKey("example"))
	if err != nil {
		log.Fatal(err)
	}
	kek, err = kms.New("awskms:eu-central-1/alias/keyring", w)
	if err != nil {
		log.Fatal(err)
	}
	return kek, end
}

// exampleTransit returns a KEK as that of ExampleNew_transit.
func exampleTransit() (kek keyring.KEK, end func()) {
	addr, stop := serveTransit()
	w := transit.NewWrapper()
	_, err := w.SetConfig(context.Background(), transit.WithAddress(addr), transit.WithMountPath("transit"),
		transit.WithKeyName("keyring"), transit.WithToken("example"))
	if err != nil {
		log.Fatal(err)
	}
	kek, err = kms.New("transit:vault.internal/transit/keyring", w)
	if err != nil {
		log.Fatal(err)
	}
	return kek, func() {
		w.Finalize(context.Background())
		stop()
	}
}
