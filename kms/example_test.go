package kms_test

import (
	"context"
	"fmt"
	"log"

	"example.com/keyring"
	"example.com/keyring/kms"
	"filippo.io/age"
	wrapping "github.com/hashicorp/go-kms-wrapping/v2"
	"github.com/hashicorp/go-kms-wrapping/wrappers/awskms/v2"
	"github.com/hashicorp/go-kms-wrapping/wrappers/transit/v2"
)

// Three KEKs side by side: each wraps every key. Either KMS opens the key files, and so does the identity of the escrow.
//
// The other providers work the same way, with wrappers/azurekeyvault/v2, wrappers/gcpckms/v2,
// wrappers/ocikms/v2, wrappers/alicloudkms/v2, wrappers/tencentcloudkms/v2 and wrappers/huaweicloudkms/v2 of
// github.com/hashicorp/go-kms-wrapping.
func Example() {
	inAWS, end := exampleAWS()
	defer end()
	inVault, end := exampleTransit()
	defer end()

	identity, err := age.GenerateX25519Identity() // offline, with age-keygen: servers have the recipient alone
	if err != nil {
		log.Fatal(err)
	}
	escrow, err := keyring.AgeKEK([]age.Recipient{identity.Recipient()})
	if err != nil {
		log.Fatal(err)
	}
	for _, kek := range statusWith(inAWS, inVault, escrow) { // Config.KEKs of keyring.Open or node.Start
		fmt.Println(kek.State)
	}
	// Output:
	// works
	// works
	// works
}

// A key of AWS KMS. Its ID, which names the KEK in the key files, is the same at every start.
func ExampleNew_aws() {
	ctx := context.Background()
	endpoint, end := serveAWS() // stands in for AWS
	defer end()

	w := awskms.NewWrapper()
	_, err := w.SetConfig(ctx, wrapping.WithKeyId("alias/keyring"), awskms.WithRegion("eu-central-1"),
		// Leave out these three: credentials come from the environment, a profile or the instance's role.
		awskms.WithEndpoint(endpoint), awskms.WithAccessKey("example"), awskms.WithSecretKey("example"))
	if err != nil {
		log.Fatal(err)
	}
	kek, err := kms.New("awskms:eu-central-1/alias/keyring", w)
	if err != nil {
		log.Fatal(err)
	}
	for _, kek := range statusWith(kek) { // Config.KEKs of keyring.Open or node.Start
		fmt.Println(kek.ID, kek.State)
	}
	// Output: awskms:eu-central-1/alias/keyring works
}

// A key of the transit engine of Vault or OpenBao.
func ExampleNew_transit() {
	ctx := context.Background()
	addr, end := serveTransit() // stands in for https://vault.internal:8200
	defer end()

	w := transit.NewWrapper()
	_, err := w.SetConfig(ctx, transit.WithAddress(addr), transit.WithMountPath("transit"), transit.WithKeyName("keyring"),
		transit.WithToken("example")) // leave it out: the token comes from VAULT_TOKEN, and is renewed
	if err != nil {
		log.Fatal(err)
	}
	defer w.Finalize(ctx)
	kek, err := kms.New("transit:vault.internal/transit/keyring", w)
	if err != nil {
		log.Fatal(err)
	}
	for _, kek := range statusWith(kek) { // Config.KEKs of keyring.Open or node.Start
		fmt.Println(kek.ID, kek.State)
	}
	// Output: transit:vault.internal/transit/keyring works
}
