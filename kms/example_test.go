package kms_test

import (
	"context"
	"log"
	"os"

	"example.com/keyring"
	"example.com/keyring/kms"
	"filippo.io/age"
	wrapping "github.com/hashicorp/go-kms-wrapping/v2"
	"github.com/hashicorp/go-kms-wrapping/wrappers/awskms/v2"
	"github.com/hashicorp/go-kms-wrapping/wrappers/transit/v2"
)

// Three KEKs side by side: each wraps every key. Either KMS opens it, and so do the identities
// of the escrow.
func Example() {
	ctx := context.Background()

	// Credentials come from the environment, a profile or the instance's role.
	aws := awskms.NewWrapper()
	if _, err := aws.SetConfig(ctx, wrapping.WithKeyId("alias/keyring"), awskms.WithRegion("eu-central-1")); err != nil {
		log.Fatal(err)
	}
	inAWS, err := kms.New("awskms:eu-central-1/alias/keyring", aws)
	if err != nil {
		log.Fatal(err)
	}

	// The token comes from VAULT_TOKEN; the wrapper renews it.
	vault := transit.NewWrapper()
	_, err = vault.SetConfig(ctx, transit.WithAddress("https://vault.internal:8200"),
		transit.WithMountPath("transit"), transit.WithKeyName("keyring"))
	if err != nil {
		log.Fatal(err)
	}
	defer vault.Finalize(ctx)
	inVault, err := kms.New("transit:vault.internal/transit/keyring", vault)
	if err != nil {
		log.Fatal(err)
	}

	// Escrow, for the day when neither answers: the file has recipients only, one a line as for
	// age -R, and their identities lie in a safe.
	f, err := os.Open("/etc/myservice/escrow.txt")
	if err != nil {
		log.Fatal(err)
	}
	defer f.Close()
	to, err := age.ParseRecipients(f)
	if err != nil {
		log.Fatal(err)
	}
	escrow, err := keyring.AgeKEK(to)
	if err != nil {
		log.Fatal(err)
	}

	// The rest go the same way, from wrappers/azurekeyvault/v2, wrappers/gcpckms/v2,
	// wrappers/ocikms/v2, wrappers/alicloudkms/v2, wrappers/tencentcloudkms/v2 and
	// wrappers/huaweicloudkms/v2 of github.com/hashicorp/go-kms-wrapping.
	cfg := keyring.Config{
		KEKs: []keyring.KEK{inAWS, inVault, escrow},
		// Dir, ID, Raft and FSM as in the example of package keyring.
	}
	_ = cfg
}
