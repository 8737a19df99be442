package jwt

// SignerOf takes over a private key that was parsed.
func SignerOf(id, alg string, private any) (*Signer, error) { return newSigner(id, alg, private) }
