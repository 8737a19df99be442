package jwt

// SignerOf takes over a private key that was parsed.
func SignerOf(id, alg string, private any) (*Signer, error) { return newSigner(id, alg, private) }

// Members walks a JSON object.
func Members(b []byte, each func(name, value []byte) error) error { return members(b, each) }
